"""What a caller names is found, or the error says what there is."""

from __future__ import annotations

import pytest

import truequant as tq
from tests.programs import residual_net
from truequant.errors import ArgumentError
from truequant.runtimes import RUNTIMES, CompiledModel


@pytest.mark.parametrize(
    ("runtime", "options", "text"),
    [
        ("openvino", {"form": "qdq"}, "no option 'form' of runtime 'openvino'\n  got:      form\n  expected: threads"),
        ("torch.export", {"level": "all"}, "no option 'level' of runtime 'torch.export'"),
        ("onnxruntime", {"precision": 8}, "no option 'precision' of runtime 'onnxruntime'\n  got:      precision\n"
                                          "  expected: threads, form, level"),
        ("tflite", {}, "no runtime 'tflite'"),
    ],
)  # fmt: skip
def test_compile_says_what_there_is(runtime: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError) as error:
        tq.compile(residual_net(), runtime, **options)
    assert text in str(error.value)


def test_a_form_that_is_another_runtimes() -> None:
    with pytest.raises(ArgumentError, match="no form 'openvino' of an ONNX file for onnxruntime") as error:
        CompiledModel(residual_net(), form="openvino")  # type: ignore[arg-type]
    assert "expected: 'qdq' or 'qoperator'" in str(error.value)


def test_who_promises_needs_a_package() -> None:
    """What comes with torch alone promises nothing."""
    assert {r.name for r in RUNTIMES.values() if r.exceptions} == {r.name for r in RUNTIMES.values() if r.package}
