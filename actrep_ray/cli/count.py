"""`actrep count`: the repetitions in one video, by a model or by the periodicity detector."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.checkpoint import add_checkpoint_arguments, read_model, recipe_for
from actrep_ray.cli.commands import UsageError, add_command, picture_file, show

if TYPE_CHECKING:
    from actrep_ray.evaluation.predictions import Prediction
    from actrep_ray.records import Claims
    from data_prep.periodicity.detector import Detection
    from data_prep.schema import Clip

EXIT_NOT_SURE = 3
"""The detector doubts what it sees; 2 is a wrong input."""


def add_count(commands: Any) -> None:
    """Add `actrep count`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "count",
        _count,
        "count the repetitions in one video",
        "actrep count squats.mp4 --checkpoint runs/tiny_grpo --json",
    )
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument(
        "--plot",
        type=picture_file,
        metavar="FILE.png",
        help="draw self-similarity, signal and cycles of the periodicity detector",
    )
    parser.add_argument(
        "--cross-check",
        action="store_true",
        help="compare the model's cycles with those of the periodicity detector",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--action", default="unknown", help="name for {action} in data.question")
    add_checkpoint_arguments(parser)


def _count(args: argparse.Namespace) -> int:
    from data_prep.video import clip_of_video

    if args.plot and args.method == "model" and not args.cross_check:
        raise UsageError("--plot shows the detector: use --method periodicity or --cross-check")
    if args.method == "periodicity":
        return _count_periodicity(clip_of_video(args.video, action=args.action), args)
    model = read_model(args)
    recipe = recipe_for(args, model)
    clip = clip_of_video(args.video, action=args.action)
    from actrep_ray.evaluation.predictions import claims_of
    from actrep_ray.evaluation.predictors import count_in
    from actrep_ray.tasks.loading import load_task

    prediction = count_in(clip, model, recipe)
    claims = claims_of(prediction, load_task(recipe.task))
    check = cross_check(clip, prediction, args) if args.cross_check else None
    if args.json:
        show(json.dumps(_as_record(prediction, claims, check, args.video, model)))
        return 0
    answer = "no readable count" if prediction.reading is None else _repetitions(prediction.reading)
    show(f"{args.video}: {answer}")
    for i, (start, end) in enumerate(prediction.cycles, start=1):
        show(f"  {i:3d}  {start:6.1f} s  to {end:6.1f} s")
    show(describe_claims(claims))
    show(f"\n{prediction.text}")
    if check is not None:
        show(f"\n{describe_cross_check(check, args.plot)}")
    return 0


def describe_claims(claims: "Claims") -> str:
    """Whether list, total and answer are one number, in words."""
    from actrep_ray.tasks.counting import ANSWER, is_consistent

    if is_consistent(claims):
        return "consistent: list, total and answer are the same number"
    if not any(number for name, number in claims.items() if name != ANSWER):
        return "no list and no total beside the answer"
    told = ", ".join(f"{name} {'none' if n is None else n}" for name, n in claims.items())
    return f"NOT consistent: {told}; the count is the answer's"


def _as_record(
    prediction: "Prediction",
    claims: "Claims",
    check: dict[str, Any] | None,
    video: Path,
    model: Path,
) -> dict[str, Any]:
    from actrep_ray.tasks.counting import is_consistent

    record: dict[str, Any] = {
        "video": str(video),
        "checkpoint": str(model),
        "count": prediction.reading,
        "cycles": prediction.cycles,
        "claims": dict(claims),
        "consistent": is_consistent(claims),
        "text": prediction.text,
    }
    return record if check is None else {**record, "cross_check": check}


def _count_periodicity(clip: "Clip", args: argparse.Namespace) -> int:
    from data_prep.periodicity.detector import detect_cycles
    from data_prep.periodicity.verdict import NOT_SURE

    found = detect_cycles(clip)
    if args.plot:
        _plot(found, args)
    code = EXIT_NOT_SURE if found.verdict == NOT_SURE else 0
    if args.json:
        record = {"video": str(args.video), "method": "periodicity", **_as_json(found)}
        show(json.dumps(record))
        return code
    show(f"{args.video}: {_answer_of(found)}")
    for i, (start, end) in enumerate(found.cycles, start=1):
        show(f"  {i:3d}  {start:6.1f} s  to {end:6.1f} s")
    if len(found.shots) > 1:
        for shot in found.shots:
            told = shot.judgement.reason or _repetitions(len(shot.cycles))
            show(f"  shot {shot.start_s:6.1f} s  to {shot.end_s:6.1f} s: {told}")
    period = found.period.period_s
    length = "none that repeats" if period is None else f"{period:.2f} s"
    show(f"periodicity {found.score:.2f} of 1, typical period: {length}")
    show(f"confidence {found.confidence:.2f} of 1")
    if args.plot:
        show(f"picture: {args.plot}")
    return code


def _answer_of(found: "Detection") -> str:
    if found.verdict == "count":
        return _repetitions(found.count)
    seen = f", {_repetitions(len(found.rejected))} seen" if found.rejected else ""
    return f"{found.verdict}: {found.reason}{seen}"


def cross_check(clip: "Clip", prediction: "Prediction", args: argparse.Namespace) -> dict[str, Any]:
    """Compare a model's cycles with the detector's; JSON values, and the picture if asked for."""
    from data_prep.periodicity.detector import agreement, detect_cycles

    found = detect_cycles(clip)
    if args.plot:
        _plot(found, args, model=prediction)
    return {"agreement": round(agreement(prediction.cycles, found.cycles), 3), **_as_json(found)}


def describe_cross_check(check: dict[str, Any], plot: Path | None) -> str:
    """The cross-check in words."""
    text = (
        f"cross-check: agreement {check['agreement']:.2f} of 1 with the periodicity detector, "
        f"which finds {_found(check)} (periodicity {check['score']:.2f})"
    )
    return f"{text}\npicture: {plot}" if plot else text


def _found(check: dict[str, Any]) -> str:
    if check["count"] is None:
        return f"nothing that it is sure of: {check['reason']}"
    return _repetitions(check["count"])


def _repetitions(count: int | str) -> str:
    return f"{count} repetition{'' if str(count) == '1' else 's'}"


def _as_json(found: "Detection") -> dict[str, Any]:
    return {
        "count": found.reading,
        "verdict": found.verdict,
        "reason": found.reason,
        "confidence": round(found.confidence, 3),
        "cycles": [[round(start, 3), round(end, 3)] for start, end in found.cycles],
        "score": round(found.score, 3),
        "period_s": None if found.period.period_s is None else round(found.period.period_s, 3),
        "rejected": [[round(start, 3), round(end, 3)] for start, end in found.rejected],
        "shots": [
            {
                "start_s": round(shot.start_s, 3),
                "end_s": round(shot.end_s, 3),
                "count": len(shot.cycles),
                "verdict": shot.judgement.verdict,
                "reason": shot.judgement.reason,
                "confidence": round(shot.judgement.confidence, 3),
            }
            for shot in found.shots
        ],
    }


def _plot(found: "Detection", args: argparse.Namespace, model: "Prediction | None" = None) -> None:
    from actrep_ray.evaluation.periodicity_figure import plot_detection

    others = {} if model is None else {"model": model.cycles}
    try:
        plot_detection(found, args.plot, title=args.video.name, others=others)
    except OSError as error:  # a folder that may not be written
        raise UsageError(f"--plot {args.plot}: {error.strerror}") from error
