"""BatchNorm in training behind the layer that it folds into, as a module of torch's and as a call of `F.batch_norm`.

It is moved by what rounding the folded bias will do, and runs in one pass with the quantizer behind it where the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from truequant.fake import one_pass
from truequant.fake.batch_statistics import NormCall, normalized
from truequant.fake.shadowing import shadowed
from truequant.fake.sites import RuntimeSite
from truequant.planning import norm_arguments


def of_module(
    site: RuntimeSite, layer: RuntimeSite, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The module at `site`, whose own forward is `forward`."""
    module: Any = site.owner
    x, batch = args[0] if args else kwargs["input"], layer.take_statistics()
    if batch is not None:
        call = NormCall.of_module(module, x, _bias(layer, module, x))
        _count_batch(module)
        return site.finish(normalized(call, batch))
    is_one_call = module.track_running_stats and module.momentum is not None and not isinstance(module, nn.SyncBatchNorm)
    if is_one_call and site.quantized_at is not None:
        y = one_pass.normalized(site, x, lambda: NormCall.of_module(module, x, _bias(layer, module, x)))
        if y is not None:
            _count_batch(module)
            return y
    shifted = one_pass.shifted_bias(layer, x.dtype)
    if shifted is None:
        return site.finish(forward(*args, **kwargs))
    if not is_one_call:
        with shadowed(module, bias=shifted):
            return site.finish(forward(*args, **kwargs))
    # What the module's own forward calls; without shadowing, which torch.compile before 2.11 cannot follow.
    call = NormCall.of_module(module, x, shifted)
    _count_batch(module)
    return site.finish(call.result())


def of_function(
    site: RuntimeSite, layer: RuntimeSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """`function`, which is `F.batch_norm`, called with these arguments."""
    given = norm_arguments(args, kwargs)
    x, batch = given["input"], layer.take_statistics()
    shifted = one_pass.shifted_bias(layer, x.dtype)
    if shifted is not None:
        given["bias"] = shifted
    if not given["training"] or given["running_mean"] is None:
        return site.finish(function(**given))
    call = NormCall(x, *(given[name] for name in ("running_mean", "running_var", "weight", "bias", "momentum", "eps")))
    if batch is not None:
        return site.finish(normalized(call, batch))
    y = one_pass.normalized(site, x, lambda: call) if site.quantized_at is not None else None
    return site.finish(function(**given)) if y is None else y


def _bias(layer: RuntimeSite, module: Any, x: Tensor) -> Tensor | None:
    shifted = one_pass.shifted_bias(layer, x.dtype)
    own: Tensor | None = module.bias
    return own if shifted is None else shifted


def _count_batch(module: Any) -> None:
    module.num_batches_tracked.add_(1)


__all__ = ["of_function", "of_module"]
