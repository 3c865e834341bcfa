"""The distribution: what the sdist holds, that it installs and works, that the README is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Built or local things; a checkout fresh from git has none of them.
LOCAL = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache"
)

USE = """
import numpy as np
from alibi_kernels import native
x = np.ones((1, 2, 5, 8), np.float32)
out, lse = native.attention_forward(x, x, x, [0.5, 0.25])
assert (out == 1).all(), out
import alibi_kernels
print(alibi_kernels.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(kind: str, source: Path, destination: Path) -> Path:
    """Calls the build backend as pip does; kind is "sdist" or "wheel"."""
    hook = f"from setuptools.build_meta import build_{kind} as b; print(b({str(destination)!r}))"
    return destination / run(sys.executable, "-c", hook, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as git would check them out, apart, so that nothing is written here."""
    path = tmp_path_factory.mktemp("checkout") / "alibi-kernels"
    shutil.copytree(ROOT, path, ignore=LOCAL)
    return path


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


def test_the_sdist_holds_all_sources_and_nothing_built(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [
        path.relative_to(checkout).as_posix()
        for folder in ("csrc", "alibi", "alibi_kernels")
        for path in (checkout / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    ]
    assert len(sources) > 20
    assert not set(sources) - names, "missing from the sdist"
    assert {"setup.py", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_tests_are_collected_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    """With the libraries of this checkout: who unpacks the sdist can build and test it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    package = ROOT / "alibi_kernels"
    shutil.copytree(package / "_lib", source / "alibi_kernels" / "_lib")
    for library in package.glob("_native*.so"):
        shutil.copy(library, source / "alibi_kernels")
    python = f"import sys, pytest; sys.path.insert(0, {str(source)!r}); sys.exit(pytest.main())"
    command = [sys.executable, "-c", python, "--collect-only", "-q", "-m", "slow or not slow"]
    run(*command, cwd=source)


def test_the_readme_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "fused=True" in example
    promised = re.search(r"print\(.*\)  # (.*)", example)
    assert promised
    # MindSpore leaves files in the working directory.
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"]
    assert run(*command, cwd=tmp_path).splitlines()[-1] == promised[1]


@pytest.mark.slow
def test_a_wheel_from_the_sdist_works_anywhere(sdist: Path, tmp_path: Path) -> None:
    """Compiles everything, a minute. The libraries must find each other wherever they land."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    wheel = build("wheel", source, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "alibi_kernels/_lib/libalibi_cpu.so" in names
    assert any(re.fullmatch(r"alibi_kernels/_native\..*\.so", name) for name in names)
    assert "alibi/__init__.py" in names
    packages = {name.partition("/")[0] for name in names}
    assert {name for name in packages if "dist-info" not in name} == {"alibi", "alibi_kernels"}

    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    shutil.rmtree(source)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{USE}"
    assert str(site) in run(sys.executable, "-c", program, cwd=tmp_path)


@pytest.mark.slow
def test_pip_install_from_a_checkout_fetches_its_build_tools(
    checkout: Path, tmp_path: Path
) -> None:
    """Plain `pip install .`, with build isolation; runtime dependencies are left out for time."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    run(*pip, "--target", site, ".", cwd=checkout)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{USE}"
    assert str(site) in run(sys.executable, "-c", program, cwd=tmp_path)
