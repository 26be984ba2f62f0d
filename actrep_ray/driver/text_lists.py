"""Lists that SFT has a model read beside its clips, as text without a video.

A model of few parameters forgets in SFT how to carry on a list that is longer than any it is shown,
and how to copy its length. A step's lists are random and right (`data_prep.lists`); they depend on
(seed, step) alone, so that a resumed run goes on with those that the killed one would have read.
"""

import random

import numpy as np

from actrep_ray.config import Recipe
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow
from data_prep.lists import list_lesson
from rewards.grammar.layout import CHECK_PREFIX

_END_OF_LIST = f"\n{CHECK_PREFIX}"


def text_lists(recipe: Recipe, inputs: QwenVLInputs, step: int) -> list[LearnerRow]:
    """One row without a video, whose answers are the lists of a step; none if there are none.

    Learned are the label of each repetition and all that follows the list: check, total, answer;
    not where it ends, which is chance here (docs/decisions/033).

    Args:
        recipe: `sft.text_lists` of 0 to `sft.text_list_length` repetitions, each as likely.
        inputs: Of the model.
        step: Of the run.
    """
    cfg = recipe.sft
    if not cfg.text_lists:
        return []
    rng = random.Random(f"text lists:{recipe.seed}:{step}")
    responses, learned = [], []
    for _ in range(cfg.text_lists):
        length = rng.randint(0, cfg.text_list_length)
        lesson = list_lesson(rng, length, recipe.data.question, dialect=recipe.data.dialect)
        spans = [(first, end) for kind, first, end in lesson.learned if kind == "label"]
        spans.append((lesson.text.index(_END_OF_LIST) + len(_END_OF_LIST), len(lesson.text)))
        ids, is_learned = inputs.encode_spans(lesson.text, spans)
        is_learned[-1] = True  # the token that ends an answer
        responses.append(ids)
        learned.append(is_learned)
    return [
        LearnerRow(
            row_id=f"the text lists of step {step}",
            question=recipe.data.question,
            plan=None,
            num_prompt_tokens=0,
            responses=tuple(responses),
            advantages=np.ones(len(responses), np.float32),
            learned=tuple(learned),
        )
    ]
