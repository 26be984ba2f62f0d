"""Figures in the documents are those of the files that their commands wrote."""

import pytest
from quickstart_table import DOCUMENT, with_tables


def test_the_quickstarts_tables_are_those_of_its_file() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text) == text
    assert "| grpo |" in text


def test_a_document_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the lines <!-- quickstart: begin -->"):
        with_tables("no marks")
