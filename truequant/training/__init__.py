"""Help for the user's own training loop."""

from truequant.training.groups import parameter_groups
from truequant.training.loop import Loss, Position, seed_random, training_steps
from truequant.training.monitor import GradientMonitor, ParameterReport
from truequant.training.schedule import QATSchedule

__all__ = [
    "GradientMonitor", "Loss", "ParameterReport", "Position", "QATSchedule", "parameter_groups", "seed_random",
    "training_steps",
]  # fmt: skip
