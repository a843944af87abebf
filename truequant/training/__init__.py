"""Help for the user's own training loop."""

from truequant.training.batchnorm import reestimate_batchnorm
from truequant.training.dampening import oscillation_dampening
from truequant.training.distillation import Distillation
from truequant.training.evaluation import Metric, evaluate
from truequant.training.figures import figures
from truequant.training.groups import parameter_groups
from truequant.training.history import History, Watch
from truequant.training.loop import Loss, Position, random_state_kept, seed_random, training_steps
from truequant.training.monitor import GradientMonitor, ParameterReport, weight_codes
from truequant.training.schedule import QATSchedule

__all__ = [
    "Distillation", "GradientMonitor", "History", "Loss", "Metric", "ParameterReport", "Position", "QATSchedule", "Watch",
    "evaluate", "figures", "oscillation_dampening", "parameter_groups", "random_state_kept", "reestimate_batchnorm",
    "seed_random", "training_steps", "weight_codes",
]  # fmt: skip
