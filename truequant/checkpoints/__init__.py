"""A training, whole, in one file without pickle: written atomically, checked before it is loaded, resumed to the same bits."""

from truequant.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from truequant.checkpoints.manager import CheckpointManager
from truequant.checkpoints.sampler import StatefulSampler

__all__ = ["Checkpoint", "CheckpointManager", "StatefulSampler", "load_checkpoint", "save_checkpoint"]
