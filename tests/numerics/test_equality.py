"""The learner against a second implementation, by the command that writes docs/algorithms.md."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from equality import BEGIN, END, Row, compare, main, write_table
from equality_cases import Case, combinations, make_inputs, single_options

from actrep_ray.config import AlgorithmConfig, RewardConfig

DOCS = Path(__file__).parents[2] / "docs" / "algorithms.md"
CHOICES = ("preset", "advantage", "loss", "aggregation", "rollout_correction")


def _choices(section: type[Any], field: str) -> list[str]:
    """The words that a setting may be."""
    annotation = section.model_fields[field].annotation
    members = get_args(annotation)
    nested = [word for member in members for word in get_args(member)]
    return [word for word in nested or members if word != "off"]


def _settings(cases: list[Case]) -> list[dict[str, Any]]:
    """Every setting of `algorithm` of every case, presets written out."""
    return [AlgorithmConfig(**case.settings).model_dump() for case in cases]


@pytest.mark.parametrize("field", CHOICES)
def test_every_option_has_a_case_of_its_own(field: str) -> None:
    options = {case.option for case in single_options()}
    missing = [
        word
        for word in _choices(AlgorithmConfig, field)
        if not any(option.split(",")[0] == f"{field}: {word}" for option in options)
    ]
    assert not missing


def test_every_kl_and_switch_has_a_case() -> None:
    used = _settings(single_options())
    accepted = {("loss", "k1"), ("loss", "k2"), ("loss", "k3"), ("reward", "k1")}
    assert {(one["kl_in"], one["kl_type"]) for one in used if one["kl_coef"]} == accepted
    for name in ("kl_target", "entropy_coef", "mask_truncated", "loss_scale_tokens"):
        assert any(one[name] for one in used), name
    assert {case.combine for case in single_options()} == set(_choices(RewardConfig, "combine"))


@pytest.mark.parametrize("field", ["advantage", "loss", "aggregation", "rollout_correction"])
def test_the_quick_form_has_every_option_in_some_case(field: str) -> None:
    assert set(_choices(AlgorithmConfig, field)) <= {
        one[field] for one in _settings(combinations())
    }


def test_the_learner_equals_the_second_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cases"] == len(combinations())
    assert not result["failed"]
    assert 0 < result["largest_gradient_difference"] <= result["tolerance"]["gradient"]


@pytest.mark.slow
def test_every_option_alone_equals_the_second_implementation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not result["failed"]


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`vanilla(**changes)` compares one step with a reference that has been changed."""
    folder = tmp_path_factory.mktemp("equality")
    inputs = make_inputs(folder)
    [case] = [case for case in single_options() if case.option == "loss: vanilla"]

    def run(**changes: Any) -> Row:
        changed = replace(case, method=replace(case.method, **changes))
        return compare(changed, inputs, folder, 1)

    return run


@pytest.mark.parametrize(
    "change",
    [
        {"high": 0.25},
        {"low": 0.25},
        {"advantage": "rloo"},
        {"aggregation": "seq-mean-token-mean"},
        {"lr": 1.001e-3},
        {"decay": 0.0},
        {"betas": (0.9, 0.99)},
        {"max_norm": 0.8},
        {"temperature": 0.8001},
        {"entropy": 1e-4},
    ],
    ids=str,
)
def test_a_small_difference_is_seen(vanilla: Any, change: dict[str, Any]) -> None:
    assert vanilla(**change).fails == "differs"


def test_a_branch_that_is_not_reached_is_told(vanilla: Any) -> None:
    row = vanilla()
    assert row.fails == ""
    assert replace(row, missing=("dual",)).fails == "not reached: dual"
    assert replace(row, without=5e-4).fails == "option does nothing"
    assert replace(row, gradient=float("nan")).fails == "differs"


def test_the_table_in_the_documents_has_every_option() -> None:
    _, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    found = [line.split("|")[1].strip() for line in rest.partition(END)[0].splitlines()[3:]]
    assert found == [f"`{case.option}`" for case in single_options()]


def test_a_document_without_the_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="expected the lines <!-- equality: begin -->"):
        write_table(path, [])
