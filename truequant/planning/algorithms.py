"""Which algorithms of a scheme an integer runtime can hold for weights, activations and tokens: refused here, not at export."""

from __future__ import annotations

from truequant.errors import FileError, PlanError, SchemeError
from truequant.schemes import FloatScale, Nearest, PerTensor, QuantScheme, is_dynamic


def check_weight(scheme: QuantScheme, where: str, sums_integers: bool) -> None:
    """SchemeError for an algorithm that is not for weights, or a grid that the sums of an integer layer could not keep."""
    if scheme.of_file and sums_integers:
        raise SchemeError(
            f"'{where}': full_range and scale_dtype are for linear layers whose input is left in float, or quantized a token",
            got=f"{scheme}, in a layer that sums codes: BatchNorm and bias are folded into its scales and signs",
            expected="float32 scales and the narrow range",
            fix=f'Rule("{where}", input=None), or Rule("{where}", weight=QuantScheme({scheme.dtype}, PerChannel(0)))',
        )
    if scheme.scale.not_for_weights:
        raise SchemeError(
            f"'{where}': {scheme.scale.not_for_weights}, and this is a weight",
            got=str(scheme), expected="LSQ(), LSQPlus(), TQT(), DoReFa(), TWN() or FloatScale()",
            fix=f'Rule("{where}", weight=QuantScheme({scheme.dtype}, PerChannel(0), scale=DoReFa()))',
        )  # fmt: skip


def check_activation(scheme: QuantScheme, where: str, may_be_negative: bool) -> None:
    """SchemeError for an algorithm that is not for activations, or whose grid would cut this one's negative values off."""
    rule, name = scheme.scale, type(scheme.scale).__name__
    if scheme.of_file:
        raise SchemeError(
            f"'{where}': full_range and scale_dtype are for weights, and this is an activation",
            got=str(scheme), fix=f"QuantScheme({scheme.dtype}) without them",
        )  # fmt: skip
    if scheme.oscillation is not None or not rule.for_activations(scheme.dtype):
        what = "freezing" if scheme.oscillation is not None else f"{name} of a signed type"
        raise SchemeError(
            f"'{where}': {what} is for weights, and this is an activation", got=str(scheme), fix="LSQ() or PACT()"
        )
    if rule.zero_point_0 and not scheme.dtype.signed and may_be_negative:
        raise SchemeError(
            f"'{where}': {name} clips at 0, and these values may be negative",
            got=f"{scheme} on an edge without a ReLU",
            expected="a ReLU before it, or an algorithm with a zero point",
            fix=f'Rule("{where}", output=QuantScheme({scheme.dtype}, scale=LSQ()))',
        )


def check_dynamic(
    scheme: QuantScheme, where: str, error: type[FileError] | type[PlanError] | type[SchemeError] = SchemeError
) -> None:
    """`error` unless tokens can be quantized so: signed and symmetric codes, a scale that is computed and not learned."""
    plain = scheme.granularity == PerTensor() and scheme.scale == FloatScale() and scheme.rounding == Nearest()
    codes = scheme.dtype.signed and scheme.is_symmetric and 2 <= scheme.dtype.bits <= 8
    if not (is_dynamic(scheme) and plain and codes and scheme.oscillation is None and not scheme.of_file):
        raise error(
            f"'{where}': tokens cannot be quantized at run time in this way",
            got=str(scheme),
            expected="a signed, symmetric type of 2 to 8 bits with FloatScale(), scales in float32",
            fix="QuantScheme(int8, observer=Dynamic())",
        )
