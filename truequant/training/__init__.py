"""Help for the user's own training loop: schedules, distillation, metrics, and what watches a training."""

from truequant.checkpoints import StatefulSampler
from truequant.fake import detect_anomaly
from truequant.training.batchnorm import reestimate_batchnorm
from truequant.training.dampening import oscillation_dampening
from truequant.training.distillation import Distillation
from truequant.training.evaluation import evaluate
from truequant.training.figures import figures
from truequant.training.groups import parameter_groups
from truequant.training.history import History
from truequant.training.monitor import GradientMonitor
from truequant.training.schedule import QATSchedule

__all__ = [
    "Distillation", "GradientMonitor", "History", "QATSchedule", "StatefulSampler", "detect_anomaly", "evaluate", "figures",
    "oscillation_dampening", "parameter_groups", "reestimate_batchnorm",
]  # fmt: skip
