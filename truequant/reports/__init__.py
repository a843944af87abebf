"""Results made visible: tables for a terminal, curves as a picture, the machine they were measured on."""

from truequant.reports.curves import Branch, plot_curves
from truequant.reports.doctor import Machine, examine
from truequant.reports.progress import training_progress
from truequant.reports.system import Cpu, cpu, versions
from truequant.reports.table import Stage, stage_table, verification_table

__all__ = [
    "Branch", "Cpu", "Machine", "Stage", "cpu", "examine", "plot_curves", "stage_table",
    "training_progress", "verification_table", "versions",
]  # fmt: skip
