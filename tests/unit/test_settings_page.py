"""docs/settings.md is what the definitions say, and says something of each setting."""

from pathlib import Path

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.config.page import settings_page
from actrep_ray.config.section import Section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def keys_of(section: Section, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        below = isinstance(value, Section)
        keys += keys_of(value, f"{prefix}{name}.") if below else [f"{prefix}{name}"]
    return keys


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == settings_page(), (
        "write it anew: .venv/bin/python -m actrep_ray.config.page docs/settings.md"
    )


def test_every_setting_has_a_row_that_explains_it() -> None:
    rows = {
        cells[1].strip(" `"): cells[-2].strip()
        for cells in (line.split("|") for line in settings_page().splitlines())
        if len(cells) >= 5 and cells[1].startswith(" `")
    }
    assert sorted(rows) == sorted(keys_of(Recipe()))
    assert [key for key, about in rows.items() if len(about) < 5] == []


def test_a_default_of_the_page_can_be_set() -> None:
    """`train.num_steps` as the page has it is the recipe's own default."""
    line = next(row for row in settings_page().splitlines() if "`train.num_steps`" in row)
    value = line.split("|")[2].strip(" `")
    assert load_recipe(None, [f"train.num_steps={value}"]) == Recipe()
