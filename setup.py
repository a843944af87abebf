"""The compiled kernels, which are optional: without a compiler the package installs with a warning and runs the reference.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# The largest first, so that no core waits for one at the end. The others take seconds.
LONGEST = ("bindings", "level_portable", "level_avx512", "level_avx2")


def place(source: str) -> tuple[int, str]:
    """When a file is compiled."""
    name = Path(source).stem
    return (LONGEST.index(name) if name in LONGEST else len(LONGEST), name)


def is_binding(source: str) -> bool:
    """Whether a file only calls kernels: to optimize it as they are gains nothing."""
    return Path(source).parent == Path("csrc")


def files(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))


class BuildKernels(build_ext):
    """Compiles the files side by side, and says what to do where that fails."""

    def build_extension(self, ext: Extension) -> None:
        compile_all = self.compiler.compile

        def one(source: str, *args: object, extra_postargs: list[str], **kwargs: object) -> list[str]:
            extra = [*extra_postargs, "-O2"] if is_binding(source) else extra_postargs
            return compile_all([source], *args, extra_postargs=extra, **kwargs)

        def side_by_side(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: one(source, *args, **kwargs), sorted(sources, key=place))
                return [o for objects in made for o in objects]

        self.compiler.compile = side_by_side
        try:
            super().build_extension(ext)
        except Exception as error:
            built = Path(self.get_ext_fullpath(ext.name))
            for left in (built, ROOT / "truequant" / "kernels" / built.name):  # an older build must not pass for this one
                left.unlink(missing_ok=True)
            self.warn(f"no compiled kernels, truequant will run its slower reference; a C++ compiler is needed: {error}")
        finally:
            self.compiler.compile = compile_all


def extensions() -> list[Extension]:
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        warnings.warn("no compiled kernels: torch is not there while truequant is built (--no-build-isolation)", stacklevel=1)
        return []
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    flags = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-DAT_PER_OPERATOR_HEADERS", *openmp]
    # No -fopenmp for the linker: the functions of OpenMP come from the library that torch has loaded, and so do the threads.
    return [
        Extension(
            "truequant.kernels._native",
            files("*.cpp", "kernels/*.cpp"),
            depends=files("kernels/*.h", "kernels/*.inl", "bindings/*"),
            include_dirs=include_paths(),
            library_dirs=library_paths(),
            libraries=["c10", "torch", "torch_cpu", "torch_python"],
            extra_compile_args=[*flags, "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
