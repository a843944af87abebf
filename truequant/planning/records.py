"""The records of a plan: a quantizer, a call site, an input and a swapped module, each as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from truequant.numerics import NormRule
from truequant.planning.actions import Action
from truequant.planning.formulas import Affine
from truequant.schemes import QuantScheme

Kind = Literal["input", "activation", "output", "weight", "scores", "constant"]


@dataclass(frozen=True, slots=True)
class QuantizerPlan:
    """A quantizer: submodule `slot` of the quantizers of module `owner`. `name` is `owner.slot`.

    channels: how many scales a per-channel scheme has, or the shape of per-group ones; None for one.
    tied: a weight's scale belongs to the weight with its BatchNorm folded in.
    stream: of a residual stream in front of norms, the axis of its channels, counted from the end: it has 8 bits, or 16 where
    the range that is found is more than 8 times its median channel's. chosen: whether that was decided: `scheme` says which.
    """

    name: str
    owner: str
    slot: str
    kind: Kind
    scheme: QuantScheme
    channels: int | tuple[int, ...] | None = None
    tied: bool = False
    stream: int | None = None
    chosen: bool = False

    @property
    def undecided(self) -> bool:
        """Whether its width follows the first range that is found."""
        return self.stream is not None and not self.chosen


@dataclass(frozen=True, slots=True)
class Site:
    """A call site: the `ordinal`-th call of `op` among `owner`'s own calls, in the frame of calls `frame`.

    reads: the quantizers of the activations that it reads, in order, None for a float.
    emits: the quantizer on whose grid its integer result lies in evaluation.
    quantizer: the quantizer that runs on what this site returns.
    fused: names of the sites that are computed with this one; norm: the one of them that is a BatchNorm.
    fused_into: the site that this one is computed with.
    minimum, maximum: the clamp of the result, in values.
    train_ordinal: the ordinal in training; None where the site lives in evaluation only.
    rank, train_rank: the same, counted as where a forward runs, without calls that read constants alone (see
    `truequant.planning.constants`); None in plans that were made before calls were counted so.
    part: which of several tensors that it returns passes through the quantizer.
    weights: of a float layer, its parameters that are quantized: `(name, quantizer)`.
    dynamic: of a linear layer whose input is quantized token by token at run time, the scheme of the tokens.
    quantized_at: where the quantizer sits that runs in one training pass with this op: here, or at a clamp right behind it.
    affine: the map of channels that is computed with a layer, or that an op alone is.
    norm_rule: of a norm that is computed on codes, what it computes.
    operand: of an op that is such a map or a part of one, which positional argument is the activation.
    refused, without_onnx: of a float site, torch's names of the ops that no program can hold, so that `convert` refuses, and of
    those that no ONNX file can.
    factor: of a product of scores, by what they are multiplied before their quantizer (1 / sqrt(d)).
    scores: of attention in one call, the quantizer of its scores.
    bits: of a softmax whose result is an edge, how many bits its table of exponentials has.
    constants: which of `reads` are of constants, which are quantized here; their places among the tensors that it is given.
    writes_back: an in-place op whose result is read through the tensor that it overwrote.
    """

    name: str
    owner: str
    op: str
    ordinal: int
    frame: tuple[int, ...]
    leaf: bool
    action: Action
    reason: str
    train_ordinal: int | None = None
    reads: tuple[str | None, ...] = ()
    weight: str | None = None
    emits: str | None = None
    quantizer: str | None = None
    fused: tuple[str, ...] = ()
    norm: str | None = None
    fused_into: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    writes_back: bool = False
    part: int | None = None
    quantized_at: str | None = None
    rule: str | None = None
    weights: tuple[tuple[str, str], ...] = ()
    dynamic: QuantScheme | None = None
    rank: int | None = None
    train_rank: int | None = None
    affine: Affine | None = None
    operand: int | None = None
    norm_rule: NormRule | None = None
    refused: tuple[str, ...] = ()
    without_onnx: tuple[str, ...] = ()
    factor: float | None = None
    scores: str | None = None
    bits: int | None = None
    constants: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input tensor: where it stands (position or keyword), its quantizer, dtype, shape with None where dynamic, and the
    sizes of the example.
    """

    where: int | str
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quantizer: str | None
    example: tuple[int, ...] = ()

    def made_up(self, batch: int | None = 2) -> list[int]:
        """Sizes to try: those of the example, with a batch of `batch` where any goes; None keeps the example's."""
        sizes = list(self.example) or [2 if n is None else n for n in self.shape]
        if batch is not None and self.shape[:1] == (None,):
            sizes[0] = batch
        return sizes


@dataclass(frozen=True, slots=True)
class OwnerPlan:
    """What a module is swapped for: `multiple` where one forward calls it more than once."""

    name: str
    leaf: bool
    multiple: bool
    counts: tuple[tuple[str, int, int], ...] = ()
    """Calls of each op in one call of the owner: `(op, in evaluation, in training)`."""
    calls: tuple[tuple[str, int, int], ...] | None = None
    """The same without calls that read constants alone: one more is a call that was not planned.

    None where nobody looks: a module whose one call is its own, a container of torch's, and every owner of a plan that was made
    before calls were counted so.
    """
    callers: tuple[tuple[str, int], ...] = ()
    """Of a module that several modules call in one forward: the number of the first call by each of them."""
    frames: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] | None = None
    """The frames in which it is called, in evaluation and in training, on constants alone too.

    None for a module that every forward calls once, and in plans that were made before they were kept.
    """
