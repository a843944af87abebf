"""A training, whole, in one file without pickle: written atomically, checked before it is loaded, resumed to the same bits."""

from truequant.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
