"""`truequant doctor`: what this machine can do, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from truequant.cli.options import AsJson
from truequant.cli.session import session
from truequant.cli.tables import table

if TYPE_CHECKING:
    from truequant.reports import Machine


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Show versions, CPU, kernels and runtimes, what would be faster, what exported files promise here."""
    with session(context, as_json) as run:
        from truequant.reports import examine

        machine = examine()
        run.show(_facts(machine), _promises(machine))
        run.show(*(f"• {line}" for line in machine.advice))
        run.result(machine.to_dict())


def _facts(machine: Machine) -> Table:
    facts = table("This machine", ("", ""), ratios=(2, 7))
    facts.show_header = False
    facts.add_row("CPU", f"{machine.cpu.name}, {machine.cpu.cores} cores, {machine.system}")
    facts.add_row("features", " ".join(machine.cpu.features) or "unknown")
    facts.add_row("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items() if number is not None))
    facts.add_row("threads", f"{machine.threads} of torch")
    facts.add_row("kernels", machine.kernels)
    found = ", ".join(f"{name} {number}" for name, number in machine.runtimes.items() if number is not None)
    facts.add_row("runtimes", f"reference{', ' + found if found else ''}")
    for extra in dict.fromkeys(machine.missing.values()):
        packages = ", ".join(package for package, e in machine.missing.items() if e == extra)
        facts.add_row("not found", f"{packages}: pip install 'truequant[{extra}]'")
    return facts


def _promises(machine: Machine) -> Table:
    promises = table("What exported files promise on it", ("target", ""), ratios=(2, 7))
    for target, worth in machine.promises.items():
        promises.add_row(target, worth, style="bold red" if worth.startswith("NOT") else None)
    return promises
