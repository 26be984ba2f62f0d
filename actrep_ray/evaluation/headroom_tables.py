"""What reinforcement could win, as tables for the console."""

from actrep_ray.evaluation.headroom import Headroom
from actrep_ray.evaluation.step_forecast import FORECAST_STEPS
from actrep_ray.evaluation.tables import TableData
from actrep_ray.tasks.base import Task

_REASONS = {
    "all_right": "all answers earn everything",
    "all_wrong": "all answers earn nothing",
    "all_equal": "all answers earn the same",
    "tied_best": "the best two earn the same",
}


def headroom_tables(found: Headroom, task: Task) -> list[TableData]:
    """What answers are like, what a step will come to, and how often each count is answered."""
    return [_answers(found), _step(found), _readings(found, task)]


def _answers(found: Headroom) -> TableData:
    names = {
        "pass_at_1": "pass@1",
        "pass_at_k": f"pass@{found.num_answers}",
        "majority": f"majority of {found.num_answers}",
        "blind": "pass@1 of the same answers on other clips",
        "parse_rate": "answers that can be read",
        "consistent": "answers whose list, total and answer agree",
        "useful": "groups that are trained on",
        "flat": "groups that are flat",
    }
    rows = [
        (text, str(found.figures[name])) for name, text in names.items() if name in found.figures
    ]
    rows += [
        (f"  dropped: {_REASONS.get(reason, reason.replace('_', ' '))}", f"{share:.3f}")
        for reason, share in found.dropped.items()
    ]
    asked = f"{found.num_prompts} prompts, {found.num_answers} answers each"
    note = (
        f"Temperature {found.start.temperature:g}. 95% intervals over prompts: Wilson where each "
        "counts 0 or 1, else bootstrap."
    )
    return TableData(f"{found.start.model}: {asked}", ("", "share"), tuple(rows), note)


def _step(found: Headroom) -> TableData:
    step, start = found.step, found.start
    useful = step.useful_groups
    rows = (
        ("groups that are trained on", f"{useful.value:.1f} [{useful.low:.1f}, {useful.high:.1f}]"),
        ("groups that are sampled", f"{step.issued_groups:.1f}"),
        ("tokens that are generated", f"{step.response_tokens:,.0f}"),
        ("tokens of prompts", f"{step.prompt_tokens:,.0f}"),
        ("seconds to generate", f"{found.generate_s:.2f}"),
        ("seconds to score", f"{found.score_s:.2f}"),
    )
    title = f"Expected of a step of {start.prompts_per_step} prompts"
    if start.max_refills:
        title += f" and up to {start.max_refills} refills"
    note = (
        f"Interval: means of {FORECAST_STEPS} steps, while the model is as it is. Learning and "
        "sending weights come on top."
    )
    return TableData(title, ("", "a step"), rows, note)


def _readings(found: Headroom, task: Task) -> TableData:
    rows = tuple(
        (
            str(row.reading),
            str(row.num_prompts),
            str(row.num_answers),
            f"{row.num_right / (row.num_prompts * found.num_answers):.2f}"
            if row.num_prompts
            else "",
        )
        for row in found.readings
    )
    never = ", ".join(map(str, found.never_answered))
    note = f"Never answered, though right: {never}." if never else ""
    columns = (task.reading_name, "prompts", "answers", "pass@1")
    return TableData(f"Answers by {task.reading_name}", columns, rows, note)
