"""`QATCallback` for the Trainer of transformers.

Needs the packages transformers and accelerate: `pip install 'truequant[huggingface]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from truequant.calibration import calibrate
from truequant.fake import outermost
from truequant.training import QATSchedule, figures


class QATCallback(TrainerCallback):
    """Sets ranges before the first step, steps the schedule, adds figures to what the Trainer logs.

        qat = truequant.prepare(model, example_inputs)      # before the Trainer is made: it builds the optimizer
        trainer = Trainer(qat, arguments, train_dataset=…, compute_loss_func=loss, callbacks=[QATCallback(calibration=batches)])
        trainer.train()
        int8 = truequant.convert(qat.eval())

    The Trainer calls the model without labels where it has a `compute_loss_func(outputs, labels, num_items_in_batch)`: do
    so, because the loss is no part of the deployed model.

    calibration: batches to set ranges from before a training that starts at step 0; None lets ranges follow the first steps.
    inputs: maps such a batch to the inputs. log: add the extremes of `tq.training.figures` to `trainer.state.log_history`.
    The schedule follows the Trainer's own step, so that a resumed training goes on where it was.
    """

    def __init__(
        self,
        schedule: QATSchedule | None = None,
        *,
        calibration: Iterable[Any] | None = None,
        inputs: Callable[[Any], Any] | None = None,
        log: bool = True,
    ) -> None:
        self.schedule = schedule or QATSchedule()
        self.calibration, self.inputs, self.log = calibration, inputs, log
        self.model: nn.Module | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.model = outermost(kwargs["model"])
        if self.calibration is not None and state.global_step == 0:
            device = next(self.model.parameters()).device
            batches = (_moved(batch, device) for batch in self.calibration)
            calibrate(self.model, batches, inputs=self.inputs, progress=False)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.schedule.steps = state.global_step
        self.schedule.step(kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs")
        if not self.log or self.model is None or logs is None or "loss" not in logs:
            return
        found = {name: value for name, value in figures(self.model).items() if name.count("/") == 1}
        logs.update(found)  # for callbacks behind this one
        if state.log_history:
            state.log_history[-1].update(found)


def _moved(batch: Any, device: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_moved(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
