"""`actrep doctor`: what this installation is and what it can run, as tables."""

import argparse
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import add_command

if TYPE_CHECKING:
    from rich.console import Console

    from actrep_ray.cli.abilities import DoctorReport


def add_doctor(commands: Any) -> None:
    """Add `actrep doctor`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    add_command(
        commands,
        "doctor",
        _doctor,
        "show versions and devices, what can run here, why the rest cannot, and what to do",
        "actrep doctor",
    )


def _doctor(_: argparse.Namespace) -> int:
    """Print the report; 1 if training cannot run here."""
    from actrep_ray.cli.abilities import examine
    from actrep_ray.run.console import console

    with console().status("importing torch, vLLM and DeepSpeed ..."):
        report = examine()
    print_report(report, console())
    return 0 if report.is_healthy else 1


def print_report(report: "DoctorReport", console: "Console") -> None:
    """Print ``report`` on a ``rich.console.Console``."""
    from rich.table import Table

    from actrep_ray.run.console import as_text

    versions = Table("package", "version", title="Versions", title_justify="left")
    for name, version in report.versions.items():
        versions.add_row(name, as_text(version) if version else as_text("not installed", "dim"))
    devices = Table("device", "what it is", title="Devices", title_justify="left")
    for name, description in report.devices.items():
        devices.add_row(as_text(name), as_text(description))
    abilities = Table("kind", "name", "runs", "how, or why not", title="Abilities")
    abilities.title_justify = "left"
    for ability in report.abilities:
        runs = as_text("yes", "green") if ability.is_available else as_text("no", "red")
        abilities.add_row(ability.kind, ability.name, runs, as_text(ability.detail))
    machine = Table("of this machine", "state", "seen", "what to do", title="Machine")
    machine.title_justify = "left"
    for column in machine.columns[2:]:
        column.overflow = "fold"  # a path that is to be typed is shown whole
    colours = {"ok": "green", "note": "yellow", "fails": "red"}
    for finding in report.machine:
        state = as_text(finding.state, colours[finding.state])
        machine.add_row(finding.name, state, as_text(finding.seen), as_text(finding.remedy))
    for table in (versions, devices, machine, abilities):
        console.print(table)
    if report.is_healthy:
        console.print("Training can run here.")
    else:
        console.print("Training cannot run here: see the rows marked no or fails.")
