"""What changes a prepared model on calibration data, without training it, and what a search of widths counts.

`tq.calibrate(qat, batches, tq.methods.AdaRound())` takes a method, or several in order; `tq.search(…, tq.methods.Size(50_000))`
a budget.
"""

from truequant.analysis import Latency, LayerFacts, MultiplyAccumulates, Size
from truequant.calibration import (
    GPTQ,
    AdaRound,
    BiasCorrection,
    BlockReconstruction,
    CrossLayerEqualization,
    SmoothQuant,
    replace_relu6,
    update_ewgs,
)

__all__ = [
    "GPTQ", "AdaRound", "BiasCorrection", "BlockReconstruction", "CrossLayerEqualization", "Latency", "LayerFacts",
    "MultiplyAccumulates", "Size", "SmoothQuant", "replace_relu6", "update_ewgs",
]  # fmt: skip
