"""Several answers to one question as one: the rules by which they vote.

    readings    10, 11, 12, -, 11, 10      "-" cannot be read, and has no vote
    median      of 10, 10, 11, 11, 12 the one in the middle, 11; of two in the middle the lower, as
                somebody said it; of readings that are no numbers the majority
    majority    10 and 11 were said most often, twice each: 10, which was said first

Answers are drawn independently of each other, so each of those said most often is as likely to be
said first: the share of right majorities is, in the mean, what `answer_figures.majority` foretells.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from actrep_ray.evaluation.predictions import Prediction, claims_of
from actrep_ray.records import Reading
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import contradicts_itself

Rule = Callable[[Sequence[Reading | None]], Reading | None]


def most_frequent(readings: Sequence[Reading | None]) -> list[Reading]:
    """The readings that were given most often, the first one first; none where none was given."""
    votes = Counter(reading for reading in readings if reading is not None)
    most = max(votes.values(), default=0)
    return [reading for reading, number in votes.items() if number == most]


def majority_of(readings: Sequence[Reading | None]) -> Reading | None:
    """The most frequent one, of equals the first; None where none can be read."""
    return next(iter(most_frequent(readings)), None)


def median_of(readings: Sequence[Reading | None]) -> Reading | None:
    """The lower median of numbers, the majority of anything else; None where none can be read."""
    given = [reading for reading in readings if reading is not None]
    numbers = [reading for reading in given if isinstance(reading, int)]
    if not numbers or len(numbers) < len(given):
        return majority_of(given)
    return sorted(numbers)[(len(numbers) - 1) // 2]


def rules_of(task: Task) -> Mapping[str, Rule]:
    """The rules by name; a median is one of numbers alone."""
    return {"majority": majority_of} | ({"median": median_of} if task.is_counting else {})


def speaker(predictions: Sequence[Prediction], reading: Reading | None, task: Task) -> Prediction:
    """The answer that stands for a reading which one of them gives.

    The first that does not contradict itself, if one of those that give it does not.
    """
    giving = [one for one in predictions if one.reading == reading]
    return min(giving, key=lambda one: contradicts_itself(claims_of(one, task)))


def voted(predictions: Sequence[Prediction], rule: Rule, task: Task) -> list[Prediction]:
    """For each prediction, the one of its samples that a rule chooses.

    Args:
        predictions: With at least one sample each.
        rule: One of `rules_of`.
        task: Which was asked.
    """
    return [
        speaker(one.samples, rule([sample.reading for sample in one.samples]), task)
        for one in predictions
    ]
