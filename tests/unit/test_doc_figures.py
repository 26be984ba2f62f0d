"""Figures in the documents are those of the files that their commands wrote."""

from pathlib import Path

import pytest
from count_confidence import shares, worth
from doc_tables import FOLDER, ROOT, TABLES, read_figures, with_tables


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_a_document_are_those_of_its_file(name: str) -> None:
    text = (ROOT / TABLES[name].document).read_text(encoding="utf-8")
    assert with_tables(text, name) == text
    assert with_tables(text.replace("1", "7"), name) != text.replace("1", "7")


def test_every_file_of_figures_has_its_tables() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(TABLES)


def test_a_document_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the lines <!-- quickstart: begin -->"):
        with_tables("no marks", "quickstart")


def test_figures_are_a_file_or_its_last_line(tmp_path: Path) -> None:
    for text in ('{\n "a": 1\n}\n', 'easy: 0.9\n{"a": 1}\n'):
        (tmp_path / "out.txt").write_text(text)
        assert read_figures(tmp_path / "out.txt") == {"a": 1}


def test_the_worth_of_confidence_by_hand() -> None:
    """Two counts told to be right in 0.9 and two in 0.6, of which one and none are."""
    told = [(0.9, 5, "same"), (0.9, 4, "other"), (0.6, 3, "doubt"), (0.6, 3, "doubt")]
    seen = {
        "same": {"verdict": "count", "count": 5},
        "other": {"verdict": "count", "count": 9},
        "doubt": {"verdict": "not sure", "count": None},
    }
    records = [
        {
            "confidence": confidence,
            "count": 5,
            "answers": [5] * agree + [4] * (5 - agree),
            "consistent": agree > 3,
            "cross_check": seen[detector],
        }
        for confidence, agree, detector in told
    ]
    is_right = [True, False, False, False]
    found = worth(records, is_right)
    assert (found["right"], found["confidence"]) == (0.25, pytest.approx(0.75))
    assert found["error"] == pytest.approx((0.4 + 0.6) / 2)
    # Of two clips told 0.9: |1 - 0.9| with 0.81, |0.5 - 0.9| with 0.18, 0.9 with 0.01; of 0.6:
    # 0.4 with 0.36, 0.1 with 0.48, 0.6 with 0.16.
    by_chance = (0.81 * 0.1 + 0.18 * 0.4 + 0.01 * 0.9 + 0.36 * 0.4 + 0.48 * 0.1 + 0.16 * 0.6) / 2
    assert found["error_by_chance"] == pytest.approx(by_chance, abs=0.02)
    cases = shares(records, is_right)
    assert cases["detector"] == {
        "in doubt": {"num_clips": 2, "right": 0.0},
        "counts the same": {"num_clips": 1, "right": 1.0},
        "counts something else": {"num_clips": 1, "right": 0.0},
    }
    assert cases["answers that say it"]["3 of 5"] == {"num_clips": 2, "right": 0.0}
    assert cases["list, total and answer"]["agree"] == {"num_clips": 2, "right": 0.5}
