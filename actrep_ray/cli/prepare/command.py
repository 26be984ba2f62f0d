"""`actrep prepare`: data sets and small checkpoints, each kind in a module of its own."""

from typing import Any

from actrep_ray.cli.prepare.activities import add_activities
from actrep_ray.cli.prepare.chat_export import add_chat_export
from actrep_ray.cli.prepare.converters import add_converters
from actrep_ray.cli.prepare.lmms_eval import add_lmms_eval
from actrep_ray.cli.prepare.pseudo_labels import add_pseudo_labels
from actrep_ray.cli.prepare.rcs_export import add_rcs_export
from actrep_ray.cli.prepare.rcs_report import add_rcs_report
from actrep_ray.cli.prepare.recognition import add_recognition
from actrep_ray.cli.prepare.synthetic import add_synthetic
from actrep_ray.cli.prepare.tiny_model import add_tiny_model
from actrep_ray.cli.prepare.verl import add_verl


def add_prepare(commands: Any) -> None:
    """Add `actrep prepare` and what it prepares.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    prepare = commands.add_parser("prepare", help="write data sets and small checkpoints")
    kinds = prepare.add_subparsers(title="what", metavar="WHAT", required=True)
    add_synthetic(kinds)
    add_tiny_model(kinds)
    add_converters(kinds)
    add_rcs_report(kinds)
    add_rcs_export(kinds)
    add_pseudo_labels(kinds)
    add_verl(kinds)
    add_chat_export(kinds)
    add_lmms_eval(kinds)
    add_recognition(kinds)
    add_activities(kinds)
