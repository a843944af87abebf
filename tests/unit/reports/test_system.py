"""The machine, as a report names it."""

from __future__ import annotations

import platform

import torch

from truequant.reports import cpu, versions
from truequant.runtimes import read_cpuinfo

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t: fpu avx avx2 avx512f avx512_vnni sse4_1\n\nflags\t: fma\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\n"


def test_cpuinfo_of_x86_and_arm_and_of_nobody() -> None:
    assert read_cpuinfo(X86) == ("Some CPU @ 2.00GHz", ("sse4_1", "avx", "avx2", "avx512f", "avx512_vnni"))
    assert read_cpuinfo(ARM) == ("", ("asimd", "asimddp"))
    assert read_cpuinfo("") == ("", ())


def test_this_machine_has_a_name_and_a_core() -> None:
    here = cpu()
    assert here.name
    assert here.cores >= 1


def test_versions_are_those_of_the_packages() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] is not None
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["truequant"]
    assert all(value is None or value for value in found.values())
