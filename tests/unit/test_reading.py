"""The lessons that teach the small base to read, and what the shipped one has learned of them."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model
from actrep_ray.models.tiny import NUMBER_FORMS, base_model_folder
from actrep_ray.pretrain.reading import (
    KINDS,
    MAX_LENGTH,
    QUESTION,
    certainty,
    collate,
    lessons,
    log_probs,
    losses,
)
from data_prep.lists import Lesson, list_lesson
from rewards.grammar.read import parse

pytestmark = pytest.mark.lengthy


@pytest.fixture(scope="module")
def inputs() -> QwenVLInputs:
    return QwenVLInputs(base_model_folder())


@given(seed=st.integers(0, 10**6), length=st.integers(0, MAX_LENGTH))
def test_a_list_lesson_is_a_right_answer_and_its_numbers_are_learned(
    seed: int, length: int
) -> None:
    lesson = list_lesson(random.Random(seed), length, QUESTION)
    read = parse(lesson.text)
    assert read.count == read.total == length
    assert read.cycles is not None
    assert len(read.cycles) == length
    learned = [(kind, lesson.text[first:end]) for kind, first, end in lesson.learned]
    assert learned[-2:] == [("total", f" {length}\n"), ("answer", str(length))]
    labels = [text.rstrip(":").removeprefix("rep") for kind, text in learned[:-2]]
    assert labels == sorted(labels, key=int)  # the first of those that share a line
    assert all(kind == "label" for kind, _ in learned[:-2])


@given(st.integers(0, 10**6))
def test_what_is_learned_never_names_a_time(seed: int) -> None:
    for lesson in lessons(random.Random(seed), 4, QUESTION):
        at = 0
        for kind, first, end in lesson.learned:
            assert kind in KINDS
            assert first >= at
            assert "." not in lesson.text[first:end]
            at = end


def test_only_the_marked_tokens_count_and_each_kind_by_its_own_mean(inputs: QwenVLInputs) -> None:
    model = load_model(base_model_folder(), dtype="float32").eval()
    two = Lesson(QUESTION, "rep1:\nrep2:\n 7\n", (("label", 6, 11), ("total", 12, 15)))
    one = Lesson(QUESTION, "rep1:\n", (("label", 0, 5),))
    batch = collate(inputs, [two, one])
    decoded = [
        (KINDS[kind], inputs.tokenizer.decode([token]))
        for row, kinds in zip(batch.input_ids, batch.kinds, strict=True)
        for token, kind in zip(row.tolist(), kinds.tolist(), strict=True)
        if kind >= 0
    ]
    assert decoded == [("label", "rep2:"), ("total", " 7\n"), ("label", "rep1:")]
    with torch.no_grad():
        values, kinds = log_probs(model, batch)
        parts = losses(model, batch)
    assert kinds.tolist() == [0, 1, 0]
    assert parts.keys() == {"label", "total"}
    assert parts["label"].item() == pytest.approx(-(values[0] + values[2]).item() / 2, rel=1e-5)
    assert parts["total"].item() == pytest.approx(-values[1].item(), rel=1e-5)


def test_every_number_is_one_token_in_each_spelling(inputs: QwenVLInputs) -> None:
    for form in NUMBER_FORMS:
        assert all(len(inputs.tokenizer.encode(form.format(n))) == 1 for n in range(61))


def test_the_shipped_base_repeats_the_length_of_every_list(inputs: QwenVLInputs) -> None:
    model = load_model(base_model_folder(), dtype="float32").eval()
    lowest = certainty(model, inputs, QUESTION, seed=7)  # lists that no training was shown
    assert lowest.keys() == set(range(MAX_LENGTH + 1))
    unsure = {length: pair for length, pair in lowest.items() if min(pair) <= 0.99}
    assert not unsure
    assert {component_of(name) for name, _ in model.named_parameters()} >= {"language_model"}
