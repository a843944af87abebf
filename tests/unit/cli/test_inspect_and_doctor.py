"""`inspect` and `doctor`, and what becomes of errors in code of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import truequant as tq
from truequant.cli.app import app
from truequant.cli.inputs import example_inputs
from truequant.demo import lenet
from truequant.planning import plan_from_json
from truequant.reports import Cpu
from truequant.reports.doctor import advice, promise
from truequant.schemes import TARGETS

LENET = ["truequant.demo:lenet", "--input", "8x1x28x28"]
PLAIN, VNNI, ARM = Cpu("a", 4, ("avx2", "fma")), Cpu("b", 4, ("avx2", "fma", "avx512_vnni")), Cpu("c", 4, ("asimd", "asimddp"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def test_inspect_shows_sites_and_what_stays_float(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('preset = "w4a4"\n[[rule]]\nselect = "classifier"\nfloat = true\n')
    result = invoke("inspect", *LENET, "--config", str(config))
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "What stays float" in result.stdout
    assert "3 integer layers" in result.stdout
    assert "1 of 12 sites stay float" in result.stdout
    assert "nothing stays float" in invoke("inspect", *LENET).stdout


def test_inspect_as_json_is_the_plan() -> None:
    result = invoke("inspect", *LENET, "--preset", "w4a4", "--json")
    found = json.loads(result.stdout)
    assert plan_from_json(found["plan"], "here") == tq.plan(lenet(), example_inputs(LENET[2:]), "w4a4")
    assert (found["in_float"], found["actions"]["layer"]) == ({}, 4)


def test_two_configs_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "c.toml").touch()
    result = invoke("inspect", *LENET, "--preset", "w4a4", "--config", str(tmp_path / "c.toml"))
    assert (result.exit_code, "say different things" in result.stderr) == (2, True)


def test_an_error_in_the_users_code_is_one_block_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "people_raises.py"
    file.write_text("def make():\n    return [][3]\n")
    result = invoke("inspect", f"{file}:make", "--input", "1x2")
    assert result.exit_code == 3
    assert result.stderr == (
        "IndexError: list index out of range\n"
        f"  where:    {file}, line 2, in make\n"
        "  fix:      truequant --debug … shows the traceback\n"
    )
    as_json = invoke("inspect", f"{file}:make", "--input", "1x2", "--json")
    assert json.loads(as_json.stdout) == {
        "error": {"type": "IndexError", "what": "list index out of range", "where": f"{file}, line 2, in make"}
    }
    assert isinstance(invoke("--debug", "inspect", f"{file}:make", "--input", "1x2").exception, IndexError)


def test_errors_are_json_too() -> None:
    result = invoke("inspect", *LENET, "--preset", "w9a9", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["what"], error["got"]) == ("SchemeError", "no preset 'w9a9'", "'w9a9'")
    assert "w8a8" in error["expected"]


def test_doctor() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("kernels", "runtimes", "onnxruntime-vnni", "promise"))
    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["versions"]["truequant"]
    assert set(found["promises"]) == set(TARGETS)


@pytest.mark.parametrize(
    ("target", "cpu", "machine", "words"),
    [
        ("onnxruntime", PLAIN, "x86_64", "exact here"),
        ("onnxruntime", VNNI, "AMD64", "exact here"),
        ("onnxruntime", PLAIN, "x86_64", "VNNI makes no difference, in onnxruntime or OpenVINO"),
        ("onnxruntime-vnni", PLAIN, "x86_64", "may saturate, in OpenVINO too"),
        ("onnxruntime", Cpu("old", 4, ()), "x86_64", "exact in OpenVINO, where they are tables"),
        ("onnxruntime", Cpu("old", 4, ()), "x86_64", "NOT exact here"),
        ("onnxruntime-vnni", PLAIN, "x86_64", "NOT exact here"),
        ("onnxruntime-vnni", VNNI, "x86_64", "exact here"),
        ("onnxruntime", ARM, "aarch64", "run truequant verify"),
        ("portable", VNNI, "x86_64", "no runtime is proven"),
    ],
)
def test_what_files_promise_depends_on_the_cpu(target: str, cpu: Cpu, machine: str, words: str) -> None:
    assert words in promise(target, cpu, machine)


def test_advice() -> None:
    there: dict[str, str | None] = {"onnxruntime": "1", "openvino": None}
    assert "preset int8" in advice(PLAIN, 4, there)[0]
    assert "onnxruntime-vnni" in advice(VNNI, 4, there)[0]
    assert advice(ARM, 4, there) == ()
    assert "torch.set_num_threads(4)" in advice(ARM, 1, there)[0]
    assert "pip install" in advice(ARM, 4, {"onnxruntime": None, "openvino": None})[0]


def test_inspect_tells_what_could_not_be_converted(tmp_path: Path) -> None:
    file = tmp_path / "people_noise.py"
    file.write_text(
        "import torch\nclass Noisy(torch.nn.Module):\n    def forward(self, x):\n        return x + torch.rand_like(x)\n"
        "class Spectrum(torch.nn.Module):\n    def forward(self, x):\n        return torch.fft.rfft(x).abs()\n"
    )
    refused = invoke("inspect", f"{file}:Noisy", "--input", "2x8", "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["refused"] == {"rand_like_0": ["rand_like.default"]}
    shown = invoke("inspect", f"{file}:Noisy", "--input", "2x8")
    assert "cannot be converted: no program holds rand_like.default" in " ".join(shown.stdout.replace("│", " ").split())
    exported = invoke("inspect", f"{file}:Spectrum", "--input", "2x8", "--json")
    assert (exported.exit_code, json.loads(exported.stdout)["without_onnx"]) == (0, {"rfft_0": ["fft_rfft.default"]})
