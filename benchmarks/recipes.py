"""How a cell of the accuracy table is trained: an algorithm's name, what it is worth trying at, and what it does.

Every recipe starts from the same float model and gets the same number of epochs, of the same batches. A recipe is a function
of a `Job`; it returns the trained model in `eval()`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.demo.training import Recipe
from truequant.schemes import (
    EWGS,
    LSQ,
    MSE,
    PACT,
    TQT,
    TWN,
    DoReFa,
    Ends,
    FloatScale,
    LSQPlus,
    MinMax,
    Observation,
    Percentile,
    PerTensor,
    Rounding,
    ScaleRule,
    Stochastic,
)  # fmt: skip

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
FLOAT = Recipe(epochs=3, learning_rate=0.05)
FINE = Recipe(epochs=3, learning_rate=0.01)
RATES = {3: 0.015, 2: 0.02, 1: 0.03}
"""Learning rates by bits of the weights, the same for every algorithm: what is to be learned lies farther away."""
CALIBRATION_IMAGES = 2048
ROUNDING_IMAGES = 1024
"""Training images that post-training methods look at which change weights."""
CHOICE_IMAGES = 5000
"""Training images on which the best of several ways of post-training quantization is chosen."""


@dataclass(frozen=True)
class Job:
    """What a recipe gets. `model` is a float model that it may change; `bits` a preset's name such as "w4a4-all"."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    bits: str
    seed: int
    per_tensor: bool = False

    @property
    def config(self) -> tq.QConfig:
        """The preset with learned scales, and one scale for each weight tensor where the cell says so."""
        config = learned(tq.QConfig.preset(self.bits), LSQ())
        return mapped(config, lambda s: replace(s, granularity=PerTensor())) if self.per_tensor else config

    @property
    def calibration(self) -> tuple[Tensor, ...]:
        return self.images[:CALIBRATION_IMAGES].split(256)

    @property
    def learning_rate(self) -> float:
        """Of this cell's width."""
        return rate(self.bits)


def rate(bits: str) -> float:
    """Of a cell."""
    return RATES.get(int(bits[1]), FINE.learning_rate) if bits[1].isdigit() else FINE.learning_rate


def mapped(config: tq.QConfig, change: Callable[[tq.QuantScheme], tq.QuantScheme]) -> tq.QConfig:
    """A config whose weights' schemes are changed."""
    assert config.weight is not None
    ends = None if config.ends is None else Ends(change(config.ends.weight), config.ends.activation)
    return replace(config, weight=change(config.weight), ends=ends)


def learned(config: tq.QConfig, weight: ScaleRule, activation: ScaleRule | None = None) -> tq.QConfig:
    """A config whose low-bit schemes have these scale rules."""
    assert config.weight is not None
    assert config.activation is not None
    return replace(
        config,
        weight=replace(config.weight, scale=weight),
        activation=replace(config.activation, scale=weight if activation is None else activation),
    )


def clipped(job: Job, weight: ScaleRule, activation: ScaleRule) -> tq.QConfig:
    """A config whose activations clip at 0 where a ReLU does so before them; others, such as the results of a linear
    bottleneck, have learned scales and a zero point.
    """
    config = learned(job.config, weight, LSQ())
    plan = tq.plan(job.model, job.images[:8], config)
    learning = {q.name: q.scheme for q in plan.quantizers if q.kind == "activation" and q.scheme.learned}
    rules = [
        tq.Rule(site.name, output=learning[site.quantizer])
        for site in plan.sites
        if site.quantizer in learning and not learning[site.quantizer].symmetric
    ]
    return replace(learned(job.config, weight, activation), rules=tuple(rules))


def prepared(job: Job, config: tq.QConfig) -> nn.Module:
    """The job's model, quantization-aware and calibrated."""
    qat = tq.prepare(job.model, job.images[:8], config)
    return tq.calibrate(qat, job.calibration)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of every recipe that has none of its own."""
    return F.cross_entropy(model(x), y)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, loss: Loss = cross_entropy,
    before_step: Callable[[int, int], None] = lambda step, steps: None,
) -> nn.Module:  # fmt: skip
    """SGD with Nesterov momentum along half a cosine. Each batch is moved by up to two pixels; batches and moves depend on
    `recipe.seed` alone.
    """
    steps, size = recipe.steps(len(images)), recipe.batch(len(images))
    decay = recipe.weight_decay
    groups = tq.training.parameter_groups(model, decay) if isinstance(model, tq.QATModuleWrapper) else model.parameters()
    optimizer = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model.train()
    step = 0
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(images), generator=shuffle)[: len(images) // size * size].split(size):
            before_step(step, steps)
            optimizer.zero_grad()
            loss(model, moved(images[batch], shuffle), labels[batch]).backward()
            optimizer.step()
            schedule.step()
            step += 1
    return model.eval()


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """`x` moved by the same -2 … 2 pixels, filled with 0."""
    down, right = (int(n) for n in torch.randint(0, 5, (2,), generator=generator))
    return F.pad(x, (2, 2, 2, 2))[:, :, down : down + x.shape[2], right : right + x.shape[3]].contiguous()


def fine(job: Job) -> Recipe:
    """The budget behind the float model."""
    return replace(FINE, learning_rate=job.learning_rate, seed=1000 + job.seed)


# -- presets as they are -----------------------------------------------------------------------------------------------
def calibrated(job: Job) -> nn.Module:
    """A preset as it is, after training: what `prepare` and `calibrate` give."""
    return prepared(job, tq.QConfig.preset(job.bits)).eval()


def trained(job: Job) -> nn.Module:
    """A preset as it is, calibrated and trained."""
    return train(prepared(job, tq.QConfig.preset(job.bits)), job.images, job.labels, fine(job))


# -- recipes -----------------------------------------------------------------------------------------------------------
def lsq(job: Job) -> nn.Module:
    """Learned step sizes of weights and activations; 8-bit layers have observed ranges."""
    return train(prepared(job, job.config), job.images, job.labels, fine(job))


def straight_through(job: Job) -> nn.Module:
    """Plain fake quantization: ranges of weights from their extremes, those of activations by moving average."""
    config = learned(job.config, FloatScale())
    assert config.weight is not None
    assert config.activation is not None
    config = replace(
        config,
        weight=replace(config.weight, observer=MinMax()),
        activation=replace(config.activation, observer=tq.ranges.MovingAverage()),
    )
    return train(prepared(job, config), job.images, job.labels, fine(job))


def ptq_minmax(job: Job) -> nn.Module:
    """Post-training quantization with the extremes of what was seen."""
    return _observed(job, MinMax())


def ptq_best(job: Job) -> nn.Module:
    """Post-training quantization: the best of three ways to find ranges, and of that one with cross-layer equalization, with
    AdaRound (a tenth of its steps), and with both, by the loss on training images.
    """
    x, y = job.images[:CHOICE_IMAGES], job.labels[:CHOICE_IMAGES]

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return float(sum(F.cross_entropy(model(a), b) for a, b in zip(x.split(500), y.split(500), strict=True)))

    ranges = {observer: _observed(job, observer) for observer in (MinMax(), Percentile(), MSE())}
    losses = {observer: loss(model) for observer, model in ranges.items()}
    best = min(losses, key=lambda observer: losses[observer])
    equalize, rounded = tq.methods.CrossLayerEqualization(), tq.methods.AdaRound(iterations=1000)
    further = [_observed(job, best, steps) for steps in ([equalize], [rounded], [equalize, rounded])]
    return min((ranges[best], *further), key=loss)


def _observed(
    job: Job, observer: Observation, steps: Sequence[tq.methods.AdaRound | tq.methods.CrossLayerEqualization] = ()
) -> nn.Module:
    config = learned(job.config, FloatScale()).with_observer(observer)
    config = mapped(config, lambda s: replace(s, observer=observer))
    if not steps:
        return prepared(replace(job, model=copy.deepcopy(job.model)), config).eval()
    qat = tq.prepare(job.model, job.images[:8], config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a method leaves as it is: binary weights, layers that have no ReLU between them
        return tq.calibrate(qat, job.images[:ROUNDING_IMAGES].split(256), list(steps)).eval()


def lsq_plus(job: Job) -> nn.Module:
    """LSQ+ with its own initial weights' scales, and zero points that are learned behind ReLUs too."""
    config = learned(job.config, LSQPlus())
    assert config.activation is not None
    config = replace(config, activation=replace(config.activation, symmetric=False))
    return train(prepared(job, config), job.images, job.labels, fine(job))


def pact(job: Job) -> nn.Module:
    """PACT activations; weights as the paper has them, by DoReFa where an integer can hold it."""
    weight = FloatScale() if job.bits.startswith("w8") else DoReFa()
    return train(prepared(job, clipped(job, weight, PACT())), job.images, job.labels, fine(job))


def dorefa(job: Job) -> nn.Module:
    """DoReFa weights, and activations clipped at 6 rather than at 1: the float model was trained without a clip."""
    return train(prepared(job, clipped(job, DoReFa(), DoReFa(reach=6.0))), job.images, job.labels, fine(job))


def tqt(job: Job) -> nn.Module:
    """Learned thresholds, scales that are powers of two."""
    return train(prepared(job, learned(job.config, TQT())), job.images, job.labels, fine(job))


def rounded(job: Job, rounding: Rounding) -> nn.Module:
    """LSQ with another rounding in training."""
    config = mapped(job.config, lambda s: replace(s, rounding=rounding) if s.learned else s)
    assert config.activation is not None
    if config.activation.learned:
        config = replace(config, activation=replace(config.activation, rounding=rounding))
    return train(prepared(job, config), job.images, job.labels, fine(job))


def ewgs(job: Job) -> nn.Module:
    """LSQ with element-wise gradient scaling; the paper's fixed delta."""
    return rounded(job, EWGS(1e-3))


def stochastic(job: Job) -> nn.Module:
    """LSQ with stochastic rounding in training."""
    return rounded(job, Stochastic())


def ternary(job: Job) -> nn.Module:
    """TWN weights, activations by LSQ."""
    return train(prepared(job, learned(job.config, TWN(), LSQ())), job.images, job.labels, fine(job))


def binary(job: Job) -> nn.Module:
    """Signs with the mean of |w| (XNOR-Net), activations by LSQ."""
    return train(prepared(job, learned(job.config, FloatScale(), LSQ())), job.images, job.labels, fine(job))


def dampening(job: Job) -> nn.Module:
    """LSQ with oscillation dampening, its strength along half a cosine to 0.1."""
    progress = [0.0]

    def count(step: int, steps: int) -> None:
        progress[0] = step / steps

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        strength = 0.5 * 0.1 * (1 - math.cos(math.pi * progress[0]))
        return cross_entropy(model, x, y) + strength * tq.training.oscillation_dampening(model)

    return train(prepared(job, job.config), job.images, job.labels, fine(job), loss, count)


def freezing(job: Job) -> nn.Module:
    """LSQ whose oscillating weights freeze."""
    steps = fine(job).steps(len(job.images))
    config = mapped(job.config, lambda s: replace(s, oscillation=tq.rounding.Freezing(0.1, 0.02, steps)) if s.learned else s)
    return train(prepared(job, config), job.images, job.labels, fine(job))


def batchnorm(job: Job) -> nn.Module:
    """LSQ, then BatchNorm estimated again on 50 batches."""
    qat = lsq(job)
    return tq.training.reestimate_batchnorm(qat, job.images[: 50 * 128].split(128)).eval()


def lsq_plus_batchnorm(job: Job) -> nn.Module:
    """LSQ+, then BatchNorm estimated again on 50 batches."""
    return tq.training.reestimate_batchnorm(lsq_plus(job), job.images[: 50 * 128].split(128)).eval()


def lsq_plus_batchnorm_all(job: Job) -> nn.Module:
    """LSQ+, then BatchNorm estimated again on every training image, as a test image comes: not moved."""
    images = job.images[: len(job.images) // 128 * 128]
    return tq.training.reestimate_batchnorm(lsq_plus(job), images.split(128)).eval()


def progressive(job: Job) -> nn.Module:
    """LSQ with 4 bits for a third of the steps, 3 for another, then those of the cell."""
    steps, final = fine(job).steps(len(job.images)), int(job.bits[1])
    widths = {0: 4, steps // 3: 3, 2 * steps // 3: final} if final < 3 else {0: 4, steps // 2: 3}
    schedule = tq.training.QATSchedule(bits=widths)
    qat = prepared(job, job.config)
    return train(qat, job.images, job.labels, fine(job), before_step=lambda step, steps: schedule.step(qat))


def distilled(job: Job) -> nn.Module:
    """LSQ with the float model as its teacher, half of the loss from each."""
    teacher = copy.deepcopy(job.model)
    qat = prepared(job, job.config)
    distillation = tq.training.Distillation(qat, teacher)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * distillation(logits, x)

    return train(qat, job.images, job.labels, fine(job), loss)


RECIPES: dict[str, Callable[[Job], nn.Module]] = {
    "ptq min-max": ptq_minmax,
    "ptq best": ptq_best,
    "straight-through": straight_through,
    "lsq": lsq,
    "lsq+": lsq_plus,
    "pact": pact,
    "dorefa": dorefa,
    "tqt": tqt,
    "ewgs": ewgs,
    "stochastic": stochastic,
    "ternary": ternary,
    "binary": binary,
    "dampening": dampening,
    "freezing": freezing,
    "batchnorm": batchnorm,
    "progressive": progressive,
    "distilled": distilled,
}
COMBINATIONS: dict[str, Callable[[Job], nn.Module]] = {
    "lsq+ batchnorm": lsq_plus_batchnorm,
    "lsq+ batchnorm all": lsq_plus_batchnorm_all,
}
"""Two algorithms one behind the other, for the MLP, whose textbook figures leave plain LSQ the least room."""
PRESETS: dict[str, Callable[[Job], nn.Module]] = {"calibrated": calibrated, "trained": trained}
"""What is asked of presets of 8 bits, without an algorithm."""
