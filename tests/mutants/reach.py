"""Which tests reach which lines, and runs of chosen tests: in a child that finds torch loaded already."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.changes import ROOMS

QAT, UNIT = "tests/quantization/qat", "tests/unit"
UNITS = ("numerics", "observers", "fake", "planning", "integer", "schemes", "calibration", "training", "analysis", "kernels")
DOCTESTS = (*(f"truequant/{room}" for room in ROOMS), "truequant/schemes")
TESTS = (*(f"{UNIT}/{room}" for room in UNITS), QAT, "tests/properties", "tests/parity", "tests/attacks", *DOCTESTS)
LONG = ("tests/parity/test_coverage.py", "tests/parity/test_mnist_models.py", f"{QAT}/test_end_to_end_qat.py")
COMPILED = f"{QAT}/test_training_integration.py::test_torch_compile_gives_the_eager_results"
QUICK = ["-m", "not slow and not emulated", *(f"--ignore={path}" for path in LONG), f"--deselect={COMPILED}"]
MEMORY = 16 * 2**30


@dataclass
class Reach:
    """lines: file -> line -> tests whose call runs it; files: the same for test files whose fixtures do; seconds: of a test."""

    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    files: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def reached(self, file: str, lines: Iterable[int]) -> bool:
        """Whether anything ran one of these lines, an import too."""
        return not self.lines.get(file, {}).keys().isdisjoint(lines)

    def tests(self, file: str, lines: Iterable[int], longest: float) -> list[str]:
        """Tests of at most `longest` seconds that run one of these lines: test files with the quickest tests first."""
        chosen = {test for line in lines for test in self.lines.get(file, {}).get(line, ())}
        whole = {name for line in lines for name in self.files.get(file, {}).get(line, ())}
        chosen |= {test for test in self.seconds if test.split("::")[0] in whole}
        groups: dict[str, list[str]] = {}
        for test in sorted(test for test in chosen if self.seconds.get(test, 0.0) <= longest):
            groups.setdefault(test.split("::")[0], []).append(test)

        def mean(group: str) -> float:
            return sum(self.seconds.get(test, 0.0) for test in groups[group]) / len(groups[group])

        return [test for group in sorted(groups, key=mean) for test in groups[group]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"lines": self.lines, "files": self.files, "seconds": self.seconds}))

    @classmethod
    def load(cls, path: Path) -> Reach:
        found = json.loads(path.read_text())
        by_line = (
            {file: {int(n): t for n, t in of.items()} for file, of in found[part].items()} for part in ("lines", "files")
        )
        return cls(*by_line, found["seconds"])


class Recorder:
    """A pytest plugin: names to `coverage` what is running, and measures how long it takes."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context("file:" + item.nodeid.split("::")[0])
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.nodeid)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - began
            self.measured.switch_context("")


class Chosen:
    """A pytest plugin: only these tests, in this order; remembers the first red one."""

    def __init__(self, tests: list[str] | None) -> None:
        self.order = None if tests is None else {test: position for position, test in enumerate(tests)}
        self.red = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.red:
            self.red = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.red:
            self.red = f"collection of {report.nodeid}"


def preload() -> None:
    """What every run would load for itself, but not the library; one thread, and no bytecode of a mutant left behind."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import numpy  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401


def in_child(copy: Path, work: Callable[[], str], timeout: float) -> str:
    """What `work` returns in a forked child whose working folder is `copy`; "timeout" or how it died otherwise."""
    shutil.rmtree(copy / ".hypothesis", ignore_errors=True)  # what one mutant failed on would be tried on the next
    answer = copy.parent / "answer"
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        sys.path[:] = [str(copy), *(p for p in sys.path if p not in ("", str(Path(__file__).resolve().parents[2])))]
        os.environ["PYTHONPATH"] = str(copy)
        for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "truequant")]:
            del sys.modules[name]  # the copy's own
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        log = os.open(copy.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            answer.write_text(work())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    end = time.monotonic() + timeout
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.05)
    return answer.read_text() if answer.exists() else "a crash\n" + (copy.parent / "log").read_text()[-2000:]


def run(arguments: list[str], tests: list[str] | None) -> str:
    """The first red test of a run, "" where all are green."""
    chosen = Chosen(tests)
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments], plugins=[chosen])
    return chosen.red if chosen.red or status in (0, 5) else f"exit status {int(status)} of pytest"


def record(copy: Path, path: Path) -> str:
    """Run all quick tests of `copy` and write to `path` which lines each reaches. Returns the first red test."""
    import coverage  # `pip install coverage`: only this measurement needs it

    measured = coverage.Coverage(data_file=None, include=[f"{copy}/truequant/{room}/*" for room in ROOMS], config_file=False)
    recorder, chosen = Recorder(measured), Chosen(None)
    measured.start()
    pytest.main(["-q", "-p", "no:cacheprovider", *TESTS, *QUICK], plugins=[recorder, chosen])
    measured.stop()
    data, reach = measured.get_data(), Reach(seconds=recorder.seconds)
    for name in data.measured_files():
        file = Path(name).relative_to(copy).as_posix()
        for line, contexts in data.contexts_by_lineno(name).items():
            reach.lines.setdefault(file, {})[line] = [c for c in contexts if c and not c.startswith("file:")]
            reach.files.setdefault(file, {})[line] = [c[5:] for c in contexts if c.startswith("file:")]
    reach.save(path)
    return chosen.red
