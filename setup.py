"""Builds the kernel libraries with CMake and ships them; everything else is in pyproject.toml."""

import os
import shlex
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake: into the source tree for an editable install, into the wheel otherwise.

    CMAKE_ARGS (extra configure arguments) is honoured, as other CMake-based packages do.
    """

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "alibi_kernels"
        build = ROOT / "build" if in_place else Path(self.build_temp).resolve()
        configure = [f"-DPython_EXECUTABLE={sys.executable}", f"-DALIBI_OUTPUT_DIR={package}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = str(self.parallel or os.cpu_count() or 1)
        cmake = [sys.executable, "-m", "cmake"]  # the build requirement, wherever PATH points
        self.spawn([*cmake, "-S", str(ROOT), "-B", str(build), *configure])
        self.spawn([*cmake, "--build", str(build), "--parallel", jobs])


setup(
    # Named so that the wheel is known to hold machine code; CMake builds it, with the libraries.
    ext_modules=[Extension("alibi_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
