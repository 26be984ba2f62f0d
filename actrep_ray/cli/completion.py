"""`actrep completion`: what a shell offers at the tab key, written from the parser itself."""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from actrep_ray.cli.commands import add_command, show

SHELLS = ("bash", "zsh", "fish")


def add_completion(commands: Any) -> None:
    """Add `actrep completion`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "completion",
        _completion,
        "print what completes commands, flags and values at the tab key",
        "actrep completion bash\n\nwhere it goes:\n"
        "  bash  >> ~/.bash_completion\n"
        "  zsh   > _actrep in a folder of $fpath\n"
        "  fish  > ~/.config/fish/completions/actrep.fish",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(args: argparse.Namespace) -> None:
    write = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    show(write[args.shell](tuple(offers_of(args.parser))))


@dataclass(frozen=True)
class Offer:
    """What can follow a command.

    Attributes:
        name: Its words: `prepare csv`; empty for `actrep` alone.
        words: Commands below it and values of its arguments, each with its help.
        flags: Of its own.
        values: What may follow a flag that takes a value; none: a file.
        about: Help of each flag.
    """

    name: str
    words: dict[str, str]
    flags: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    about: dict[str, str]


def offers_of(parser: argparse.ArgumentParser, name: str = "") -> Iterator[Offer]:
    """What follows each command of a parser, itself first."""
    words: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    about: dict[str, str] = {}
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        choices = tuple(map(str, action.choices or ()))
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            helps = {one.dest: one.help or "" for one in action._choices_actions}
            words |= {word: helps.get(word, "") for word in choices}
        elif not action.option_strings:
            words |= dict.fromkeys(choices, "")
        for flag in action.option_strings:
            about[flag] = (action.help or "").partition(";")[0].partition(" (default")[0]
            if action.nargs != 0:
                values[flag] = choices
    yield Offer(name, words, tuple(about), values, about)
    for word, inner in below.items():
        yield from offers_of(inner, f"{name} {word}".lstrip())


def bash_script(offers: tuple[Offer, ...]) -> str:
    """Lines that bash sources; a path to the program is completed like its name."""
    return f"""# actrep's commands for bash: source this, or put it into ~/.bash_completion.
_actrep() {{
    local command='' offered='' i word=${{COMP_WORDS[COMP_CWORD]}}
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{command:+$command }}${{COMP_WORDS[i]}}" in
            {_names(offers)}) command="${{command:+$command }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$command ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{_cases(_after_flags(offers), "offered={words}; [[ $offered ]] || return")}
        *)
            case "$command" in
{_cases(_after_commands(offers), "offered={words}", indent=16)}
            esac
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")
}}
complete -o default -F _actrep actrep"""


def zsh_script(offers: tuple[Offer, ...]) -> str:
    """A file `_actrep` for a folder of zsh's `$fpath`; it may be sourced as well."""
    return f"""#compdef actrep
_actrep() {{
    local command='' offered='' i
    for ((i = 2; i < CURRENT; i++)); do
        case "${{command:+$command }}${{words[i]}}" in
            {_names(offers)}) command="${{command:+$command }}${{words[i]}}" ;;
        esac
    done
    case "$command ${{words[CURRENT - 1]}}" in
{_cases(_after_flags(offers), "offered={words}; [[ -n $offered ]] || {{ _files; return; }}")}
        *)
            case "$command" in
{_cases(_after_commands(offers), "offered={words}", indent=16)}
            esac
            [[ $PREFIX == -* || -z $command ]] || _files
            ;;
    esac
    compadd -- ${{=offered}}
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _actrep "$@"
else
    compdef _actrep actrep
fi"""


def fish_script(offers: tuple[Offer, ...]) -> str:
    """Lines for fish, each command and flag with its help."""
    names = " ".join(shlex.quote(offer.name) for offer in offers if offer.name)
    lines = [
        "function __actrep_command",
        "    set -l command ''",
        "    for word in (commandline -opc)[2..-1]",
        '        set -l longer (string trim "$command $word")',
        f"        contains -- $longer {names}; and set command $longer",
        "    end",
        "    echo $command",
        "end",
        "complete -c actrep -n 'test -z (__actrep_command)' -f",
    ]
    for offer in offers:
        condition = f'test (__actrep_command) = "{offer.name}"'
        at = f"complete -c actrep -n {shlex.quote(condition)}"
        for word, told in offer.words.items():
            lines.append(f"{at} -f -a {word}{_described(told)}")
        for flag in offer.flags:
            form = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            if flag in offer.values:
                choices = " ".join(offer.values[flag])
                form += f" -x -a {shlex.quote(choices)}" if choices else " -r"
            lines.append(f"{at} {form}{_described(offer.about[flag])}")
    return "\n".join(lines)


def _described(text: str) -> str:
    return f" -d {shlex.quote(' '.join(text.replace('%%', '%').split()))}" if text else ""


def _names(offers: tuple[Offer, ...]) -> str:
    return " | ".join(f"'{offer.name}'" for offer in offers if offer.name)


def _after_flags(offers: tuple[Offer, ...]) -> dict[str, str]:
    """What may stand behind the flags that take a value, by `command flag`."""
    return {
        f"{offer.name} {flag}": " ".join(choices)
        for offer in offers
        for flag, choices in offer.values.items()
    }


def _after_commands(offers: tuple[Offer, ...]) -> dict[str, str]:
    return {offer.name: " ".join((*offer.words, *offer.flags)) for offer in offers}


def _cases(offered: dict[str, str], action: str, indent: int = 8) -> str:
    """Branches of a `case`, those that do the same joined."""
    patterns: dict[str, list[str]] = {}
    for pattern, words in offered.items():
        patterns.setdefault(words, []).append(f"'{pattern}'")
    return "\n".join(
        f"{' ' * indent}{' | '.join(same)}) {action.format(words=shlex.quote(words))} ;;"
        for words, same in patterns.items()
    )
