"""Results made visible: tables for a terminal, curves as a picture, the machine they were measured on."""

from truequant.reports.curves import Branch, plot_curves
from truequant.reports.doctor import Machine, examine
from truequant.reports.pictures import picture_files
from truequant.reports.report import read_report, report, report_data
from truequant.reports.system import Cpu, cpu, versions
from truequant.reports.table import Stage, stage_table, verification_table

__all__ = [
    "Branch", "Cpu", "Machine", "Stage", "cpu", "examine", "picture_files", "plot_curves", "read_report", "report",
    "report_data", "stage_table", "verification_table", "versions",
]  # fmt: skip
