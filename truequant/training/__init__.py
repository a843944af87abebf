"""Help for the user's own training loop."""

from truequant.training.groups import parameter_groups
from truequant.training.monitor import GradientMonitor, ParameterReport
from truequant.training.schedule import QATSchedule

__all__ = ["GradientMonitor", "ParameterReport", "QATSchedule", "parameter_groups"]
