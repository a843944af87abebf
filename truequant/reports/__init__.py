"""Results made visible: tables for a terminal, curves as a picture, the machine they were measured on."""

from truequant.reports.curves import Branch, plot_curves
from truequant.reports.system import Cpu, cpu, versions
from truequant.reports.table import Comparison, Stage, comparison_table, stage_table

__all__ = ["Branch", "Comparison", "Cpu", "Stage", "comparison_table", "cpu", "plot_curves", "stage_table", "versions"]
