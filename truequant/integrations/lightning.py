"""`QATCallback` for Lightning: a float LightningModule is trained quantization-aware, its own code unchanged.

Needs the package lightning: `pip install 'truequant[lightning]'`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
from torch import nn

from truequant.calibration import calibrate
from truequant.errors import ArgumentError
from truequant.fake import QATModuleWrapper
from truequant.planning import Plan
from truequant.schemes import QConfig
from truequant.training import QATSchedule, figures
from truequant.transform import prepare


class QATCallback(pl.Callback):
    """Prepares a submodule in place before the optimizers are made, sets its ranges, steps the schedule, logs figures.

        trainer = pl.Trainer(callbacks=[QATCallback(images[:8], "int8", module="net")])
        trainer.fit(lit_model, loader)
        int8 = truequant.convert(lit_model.net.eval())

    example_inputs, config: as `prepare` takes them. module: the attribute of the LightningModule that holds the network.
    calibration: batches to set ranges from before the first step; a number takes so many of the training loader's, 0 none.
    inputs: maps an item of the loader to the inputs where that is not `(x, y)` or the inputs themselves.
    log_every: log scales, weight errors and clipped shares every so many steps; None never.
    Checkpoints of Lightning hold the quantizers; a resumed or a prepared model is not calibrated again, and the schedule
    follows the trainer's step.
    """

    def __init__(
        self,
        example_inputs: Any,
        config: QConfig | Plan | str | None = None,
        *,
        module: str = "model",
        schedule: QATSchedule | None = None,
        calibration: int | Iterable[Any] = 8,
        inputs: Callable[[Any], Any] | None = None,
        log_every: int | None = None,
    ) -> None:
        self.example_inputs, self.config, self.module = example_inputs, config, module
        self.schedule = schedule or QATSchedule()
        self.calibration, self.inputs, self.log_every = calibration, inputs, log_every
        self.calibrated = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        network = self._network(pl_module)
        if not isinstance(network, QATModuleWrapper):
            prepare(network, self.example_inputs, self.config, inplace=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.calibrated or self.calibration == 0:
            return
        batches = self.calibration
        if isinstance(batches, int):
            loader: Any = trainer.train_dataloader
            batches = itertools.islice(loader, batches)
        moved = (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in batches)
        calibrate(self._network(pl_module), moved, inputs=self.inputs, progress=False)
        self.calibrated = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.schedule.steps <= trainer.global_step:  # once an optimizer step, however many batches that takes
            self.schedule.steps = trainer.global_step
            self.schedule.step(self._network(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.log_every is not None and trainer.global_step % self.log_every == 0:
            pl_module.log_dict(figures(self._network(pl_module)))

    def state_dict(self) -> dict[str, Any]:
        """Whether ranges were set, and the schedule's step."""
        return {"calibrated": self.calibrated, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calibrated = bool(state_dict["calibrated"])
        self.schedule.load_state_dict(state_dict["schedule"])

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        found = getattr(pl_module, self.module, None)
        if not isinstance(found, nn.Module):
            names = [name for name, _ in pl_module.named_children()]
            raise ArgumentError(
                f"QATCallback: {type(pl_module).__name__} has no module '{self.module}'",
                expected=", ".join(names) or "a submodule",
                fix=f'QATCallback(…, module="{names[0]}")' if names else "keep the network in a submodule",
            )
        return found
