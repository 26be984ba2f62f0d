"""A key is taken out of what a server says, also where it is told in part."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.redaction import Redaction

KEY = "sk-proj-4fQ9zL2mX7aB1cD3"
KEYS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"wrong key {KEY}!", "wrong key ***!"),
        (f"Bearer {KEY}", "Bearer ***"),
        (f"keys {KEY} and {KEY}", "keys *** and ***"),
        (f"{KEY}{KEY}", "******"),
        (f"key begins {KEY[:12]}", "key begins ***"),
        (f"key ends {KEY[-9:]}.", "key ends ***."),
        (f"in the middle {KEY[5:14]}, cut", "in the middle ***, cut"),
        ("wrong: sk-p****************1cD3.", "wrong: ***"),
        ('{"key": "sk-proj...cD3"}', '{"key": "***"}'),
        ("sk-…", "***"),
        ("ends ***1cD3", "ends ***"),
        ("sk-other***", "sk-other***"),
        ("I counted 4 squats ... done", "I counted 4 squats ... done"),
        ("**bold** and *** rules", "**bold** and *** rules"),
        ("sk-proj", "sk-proj"),  # says nothing that is secret: 7 characters
    ],
)
def test_what_is_left_of_a_servers_words(said: str, shown: str) -> None:
    assert Redaction(KEY).apply(said) == shown


@given(KEYS, st.text(max_size=50), st.text(max_size=50), st.data())
def test_no_piece_of_a_key_is_left(key: str, front: str, back: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(key)))
    end = data.draw(st.integers(start, len(key)))
    redaction = Redaction(key)
    found = redaction.apply(front + key[start:end] + back)
    size = min(8, len(key))
    for i in range(len(key) - size + 1):
        assert key[i : i + size] not in found or key[i : i + size] in "***"
    assert len(found) <= len(front + key + back) + 3 * len(found)


def test_long_text_takes_no_longer_than_it_is_long() -> None:
    began = time.monotonic()
    assert Redaction(KEY).apply("a" * 300_000) == "a" * 300_000
    assert time.monotonic() - began < 10


@given(st.text())
def test_without_a_key_nothing_changes(text: str) -> None:
    assert Redaction("").apply(text) == text
