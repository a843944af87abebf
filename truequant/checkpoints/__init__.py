"""A training, whole, in one file without pickle: written atomically, checked before it is loaded, resumed to the same bits."""

from truequant.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from truequant.checkpoints.codec import config_from_json, config_to_json, plan_from_json, plan_to_json

__all__ = [
    "Checkpoint", "config_from_json", "config_to_json", "load_checkpoint", "plan_from_json", "plan_to_json",
    "save_checkpoint",
]  # fmt: skip
