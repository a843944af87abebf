"""The whole public API is on one screen, and importing it is quick and imports nothing optional."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import truequant as tq

OPTIONAL = (
    "accelerate", "IPython", "lightning", "matplotlib", "onnx", "onnxruntime", "openvino", "pydantic", "rich", "tensorboard",
    "torch._dynamo", "torch._inductor", "torchmetrics", "transformers", "triton", "typer", "wandb",
)  # fmt: skip


MODULES = (tq.types, tq.scales, tq.ranges, tq.rounding, tq.methods, tq.training)


def test_every_public_name_is_there_and_no_other() -> None:
    assert len(set(tq.__all__)) == len(tq.__all__)
    for name in tq.__all__:
        found = getattr(tq, name)
        assert (found.__name__ if isinstance(found, ModuleType) else found.__module__).startswith("truequant")
    for module in MODULES:
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_each_name_stands_once() -> None:
    names = [
        name for module in (tq, *MODULES) for name in module.__all__ if name != "evaluate"
    ]  # a verb, and help for a training
    assert len(names) == len(set(names))


def test_names_of_version_0_1_warn_and_are_the_same_objects() -> None:
    old = [(module, name) for module in MODULES for name in module.__all__ if name not in tq.__all__]
    assert ("truequant.types", "int8") in [(module.__name__, name) for module, name in old]
    for module, name in old:
        with pytest.warns(DeprecationWarning, match=f"'truequant.{name}' is '{module.__name__}.{name}' now"):
            assert getattr(tq, name) is getattr(module, name)
        assert name not in dir(tq)


def test_the_warning_is_seen_where_the_old_name_is_written() -> None:
    code = "import truequant as tq; print(tq.int8)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert told.startswith("<string>:1: DeprecationWarning: 'truequant.int8' is 'truequant.types.int8' now")


def _in_a_new_process(code: str) -> str:
    # With bytecode, as installed packages have it: the first process writes it where it is missing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_importing_imports_nothing_optional() -> None:
    used = "import sys, truequant; truequant.prepare"
    assert _in_a_new_process(f"{used}; print([m for m in {OPTIONAL} if m in sys.modules])") == "[]"


def test_torch_comes_with_the_first_name_that_needs_it() -> None:
    code = "import sys, truequant as tq; print(tq.types.int8, 'torch' in sys.modules, bool(tq.plan), 'torch' in sys.modules)"
    assert _in_a_new_process(code) == "int8 False True True"
    assert _in_a_new_process("from truequant import *; print(prepare.__name__, len(dir(__import__('truequant'))) > 50)") == (
        "prepare True"
    )
    assert _in_a_new_process("import truequant as tq; print(tq.kernels.__name__)") == "truequant.kernels"
    with pytest.raises(AttributeError, match="module 'truequant' has no attribute 'prepair'"):
        tq.prepair  # noqa: B018


@pytest.mark.parametrize("room", sorted(p.name for p in Path(tq.__file__).parent.iterdir() if (p / "__init__.py").exists()))
def test_every_room_can_be_the_first_that_is_imported(room: str) -> None:
    if room != "integrations":  # which holds nothing itself
        assert _in_a_new_process(f"import truequant.{room} as room; print(len(room.__all__) > 0)") == "True"


# What `from truequant import prepare` loads, beside torch: rooms, modules of the one room that is loaded in part, modules of
# others. It was measured at 0.06 of the CPU time of `import torch`; a room more makes it more for everyone.
PREPARES_WITH = {"errors", "fake", "files", "kernels", "numerics", "observers", "planning", "schemes", "transform"}
PREPARES_IN = {"truequant.transform", "truequant.transform.prepare", "truequant.transform.refusals"}
PREPARES_BY = {"hmac", "safetensors", "secrets", "tomllib"}


def test_who_prepares_loads_what_prepare_needs_and_no_more() -> None:
    code = "import sys, torch; before = set(sys.modules); from truequant import prepare; print(*(set(sys.modules) - before))"
    loaded = set(_in_a_new_process(code).split())
    assert {module.split(".")[0] for module in loaded} == {"truequant", *PREPARES_BY}
    assert {m.split(".")[1] for m in loaded if m.startswith("truequant.")} == PREPARES_WITH
    assert {m for m in loaded if m.startswith("truequant.transform")} == PREPARES_IN


@pytest.mark.parametrize(
    ("name", "needs_none_of"),
    [
        ("QConfig", "numerics observers planning kernels fake integer transform runtimes"),
        ("plan", "fake integer transform runtimes"),
        ("calibrate", "runtimes checkpoints training analysis reports"),
        ("convert", "runtimes calibration checkpoints training analysis reports"),
        ("training.QATSchedule", "runtimes analysis reports"),
        ("save_checkpoint", "runtimes training analysis reports"),
        ("export_onnx", "calibration checkpoints training analysis reports"),
        ("verify", "training reports"),
    ],
)
def test_each_name_is_loaded_from_its_own_room(name: str, needs_none_of: str) -> None:
    rooms = "{m.split('.')[1] for m in sys.modules if m.startswith('truequant.')}"
    loaded = _in_a_new_process(f"import sys, truequant; truequant.{name}; print(*{rooms})").split()
    assert not set(loaded) & set(needs_none_of.split())


def test_names_are_those_of_api_and_the_same_objects() -> None:
    from truequant import api

    assert sorted(tq.__all__) == sorted(api.__all__)
    assert set(tq.__all__) <= set(dir(tq))
    assert all(getattr(tq, name) is getattr(api, name) for name in api.__all__)


def test_without_sources_the_names_come_from_api_itself(tmp_path: Path) -> None:
    package = tmp_path / "truequant"  # as frozen programs hold it: bytecode alone
    shutil.copytree(Path(tq.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(package, quiet=2, legacy=True)
    for source in package.rglob("*.py"):
        source.unlink()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import truequant; print(truequant.__file__, truequant.prepare)"
    printed = _in_a_new_process(code)
    assert printed.startswith(f"{package}/__init__.pyc <function prepare at")


def test_a_room_that_loads_in_part_names_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="module 'truequant.transform' has no attribute 'prepair'"):
        tq.transform.prepair  # noqa: B018
