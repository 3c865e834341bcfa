"""The shape of the code base, read from the code: who may import whom, sizes, and documentation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import alibi_kernels

ROOT = Path(__file__).resolve().parent.parent

# Module of alibi_kernels -> the modules of alibi_kernels that it may import. Data flows one way:
# ops -> registry -> rows -> custom, ascend or reference; contract and rules know nobody.
MAY_IMPORT = {
    "rules": set(),
    "contract": {"rules"},
    "slopes": {"contract"},
    "layer_contract": {"contract"},
    "norms_contract": {"contract"},
    "_call": {"contract", "layer_contract", "norms_contract", "_native"},
    "native": {"_call", "contract", "layer_contract", "norms_contract"},
    "_library": set(),
    "_cann": set(),
    "reference": {"contract"},
    "custom": {"contract", "_library"},
    "ascend": {"contract", "custom"},
    "rows": {"contract", "custom", "ascend", "reference", "_library", "_cann"},
    "registry": {"contract", "norms_contract", "custom", "rows"},
    "forms": {"contract"},
    "ops": {"contract", "norms_contract", "forms", "registry", "slopes"},
    "norms": {"contract", "norms_contract", "forms", "custom", "rows", "registry"},
    "layer_ops": {"layer_contract", "forms", "custom", "rows", "registry"},
    "info": {"contract", "layer_ops", "registry", "_library", "_cann", "native"},
}
# Modules that work where MindSpore is not installed, and what else they may not import.
WITHOUT_MINDSPORE = {
    "rules": {"mindspore", "numpy"},
    "contract": {"mindspore", "numpy"},
    "layer_contract": {"mindspore", "numpy"},
    "norms_contract": {"mindspore", "numpy"},
    "slopes": {"mindspore"},
    "_call": {"mindspore"},
    "native": {"mindspore"},
    "_library": {"mindspore"},
    "_cann": {"mindspore"},
}
# Directory of csrc/ -> what its quoted includes may reach besides the directory itself.
SHARED_HEADERS = {f"csrc/{name}.h" for name in ("alibi_attention", "alibi_cache", "alibi_layer")}
SHARED_HEADERS |= {"csrc/check.h"}
ENVIRONMENT = {"ALIBI_BACKEND", "ALIBI_CPU_ISA"}
# CANN's own, which say where its op packages are.
FOREIGN_ENVIRONMENT = {"ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH"}

MAX_LINES = 400
MAX_KERNEL_LINES = 600
MAX_FUNCTION_LINES = 60
KERNEL_FILE = re.compile(r"\.inl\.h$|\.cuh?$|/op_kernel/")


def python_files(*directories: str) -> list[Path]:
    return sorted(path for d in directories for path in (ROOT / d).rglob("*.py"))


def c_files(directory: str = "csrc") -> list[Path]:
    suffixes = {".h", ".cc", ".cpp", ".cu", ".cuh"}
    return sorted(p for p in (ROOT / directory).rglob("*") if p.suffix in suffixes)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports anywhere; name is "" for plain imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def internal_imports(path: Path) -> set[str]:
    """The modules of alibi_kernels that a file imports."""
    found = set()
    for module, name in imports(path):
        if module == "alibi_kernels":
            found.add(alibi_kernels._HOME.get(name, name) or "__init__")
        elif module.startswith("alibi_kernels."):
            found.add(module.split(".")[1])
    return found


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_import_only_what_they_may(module: str) -> None:
    found = internal_imports(ROOT / "alibi_kernels" / f"{module}.py")
    assert found <= MAY_IMPORT[module], f"{module} must not import {found - MAY_IMPORT[module]}"


def test_every_module_is_in_the_table() -> None:
    modules = {path.stem for path in (ROOT / "alibi_kernels").glob("*.py")}
    assert modules - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", WITHOUT_MINDSPORE)
def test_modules_that_need_no_mindspore(module: str) -> None:
    roots = {name.split(".")[0] for name, _ in imports(ROOT / "alibi_kernels" / f"{module}.py")}
    assert not roots & WITHOUT_MINDSPORE[module]


def test_public_names_load_lazily() -> None:
    code = (
        "import sys, alibi_kernels as a; assert a.alibi_slopes(8)[0] == 0.5;"
        "assert {*a.__all__, 'native'} <= set(dir(a));"
        "print('alibi_kernels.native' in sys.modules);"
        "print(a.native.attention_forward.__module__, 'mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "alibi_kernels.native", "False"]
    with pytest.raises(AttributeError, match="no attribute 'alibi_atention'"):
        alibi_kernels.alibi_atention  # noqa: B018


def test_the_model_uses_public_names_only() -> None:
    for path in python_files("alibi"):
        for module, name in imports(path):
            private = module.startswith("alibi_kernels.") or (
                module == "alibi_kernels" and name and name not in alibi_kernels.__all__
            )
            assert not private, f"{name_of(path)} imports {module} {name}"


@pytest.mark.parametrize("directory", ["cpu", "cuda", "aot", "python", "ascend"])
def test_c_includes_stay_in_their_directory(directory: str) -> None:
    """Backends share the C contract and its checks, nothing else, and know no MindSpore."""
    home = f"csrc/{directory}/"
    allowed = set(SHARED_HEADERS)
    if directory == "python":
        allowed.add("csrc/cpu/testing.h")  # the bindings expose the kernels' test hooks
    for path in c_files(home):
        for quote, target in re.findall(
            r'^\s*#\s*include\s+(["<])([^">]+)', path.read_text(), re.M
        ):
            assert "mindspore" not in target.lower(), f"{name_of(path)} includes {target}"
            if quote == "<":
                continue
            places = (path.parent, ROOT / home, ROOT / "csrc")
            found = next((p / target for p in places if (p / target).is_file()), None)
            if found is None:
                continue  # from outside the repository: a toolkit, or the compiler's own
            reached = name_of(found.resolve())
            assert reached.startswith(home) or reached in allowed, f"{name_of(path)}: {reached}"


def test_two_environment_variables() -> None:
    used = set()
    for path in python_files("alibi", "alibi_kernels"):
        used |= set(re.findall(r"(?:environ(?:\.get)?|getenv)[(\[]\s*\"(\w+)\"", path.read_text()))
    for path in c_files():
        used |= set(re.findall(r"getenv\(\s*\"(\w+)\"", path.read_text()))
    assert used - FOREIGN_ENVIRONMENT == ENVIRONMENT


def test_files_are_short() -> None:
    for path in python_files("alibi", "alibi_kernels", "benchmarks", "tests") + c_files():
        limit = MAX_KERNEL_LINES if KERNEL_FILE.search(str(path)) else MAX_LINES
        lines = len(path.read_text().splitlines())
        assert lines <= limit, f"{name_of(path)} has {lines} lines, more than {limit}"


def test_functions_are_short() -> None:
    """Counted without the docstring, which may teach at length."""
    for path in python_files("alibi", "alibi_kernels", "benchmarks", "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False)
                lines = node.body[-1].end_lineno - node.lineno + 1
                lines -= docstring.count("\n") + 1 if docstring else 0
                assert lines <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name}, {lines} lines"


@pytest.mark.parametrize("name", sorted(alibi_kernels._HOME))
def test_public_functions_are_documented(name: str) -> None:
    tree = ast.parse((ROOT / "alibi_kernels" / f"{alibi_kernels._HOME[name]}.py").read_text())
    definition = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    )
    text = ast.get_docstring(definition) or ""
    for section in ("Args:", "Returns:", "Raises:", "Supported Platforms:"):
        assert f"\n{section}\n" in text, f"{name} lacks {section}"
    function = definition
    if isinstance(definition, ast.ClassDef):
        function = next(
            node
            for node in definition.body
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        )
    for argument in function.args.args + function.args.kwonlyargs:
        described = re.search(rf"^ +.*\b{argument.arg}\b.*:", text, re.M)
        assert described or argument.arg == "self", f"{name}: {argument.arg}"
    assert function.returns is not None


def test_versions_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    static = re.search(r'^version = "(.+)"$', pyproject, re.M)
    dynamic = 'version = { attr = "alibi_kernels.__version__" }' in pyproject
    assert dynamic or (static is not None and static[1] == alibi_kernels.__version__)
