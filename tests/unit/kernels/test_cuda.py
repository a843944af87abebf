"""The Triton kernels against the reference, bit for bit: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
LAWS = Path(__file__).with_name("cuda_laws.py")


def run(device: str, **environment: str) -> None:
    """The laws in a process of their own: the interpreter must be chosen before the kernels are imported."""
    command = [sys.executable, str(LAWS), device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "laws hold" in done.stdout


@pytest.mark.slow
def test_the_interpreter_computes_the_bits_of_the_reference() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are tested where it is")
    run("cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the Triton kernels ran in the interpreter only")
def test_the_gpu_computes_the_bits_of_the_reference() -> None:
    run("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: a training step was not captured in a CUDA graph")
def test_a_training_step_is_captured_in_a_cuda_graph() -> None:
    run("graph")
