"""Imports point one way, and heavy libraries stay in their adapters: read from the source, then seen in a process."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "msconv_deploy"

# package -> packages of ours that it may import
ALLOWED = {
    "ops": {"ops"},
    "nn": {"nn", "ops"},
    "exporting": {"exporting", "nn", "ops", "validation", "reporting", "runtimes"},
    "runtimes": {"runtimes", "ops", "reporting"},
    "validation": {"validation", "runtimes", "ops", "reporting"},
    "plugin": {"plugin", "runtimes", "reporting"},
    "reporting": {"reporting"},
    "surgery": {"surgery", "ops"},
    "optimizing": {"optimizing", "surgery", "validation", "reporting", "ops"},
    "serving": {"serving", "validation", "runtimes", "ops", "optimizing", "reporting"},
    "cli": {"cli", "exporting", "nn", "ops", "optimizing", "plugin", "reporting", "runtimes", "serving", "validation"},
}
EVERYWHERE = {"errors", "files", "model_checks", "model_files", "wire_format", "msconv_deploy"}
# library -> packages that may import it when they are imported
ADAPTERS = {
    "torch": {"nn", "exporting", "runtimes/pytorch.py"},
    "tensorrt_lean_bindings": set(),
    "tensorrt_rtx_bindings": set(),
    "tensorrt": set(),
    "polygraphy": {"runtimes", "validation"},
    "onnxruntime": {"runtimes"},
}


def imports(path, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = list(tree.body) if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


FILES = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    package = path.relative_to(PACKAGE).parts[0]
    for name in imports(path, top_level_only=False):
        parts = name.split(".")
        if parts[0] == "msconv_deploy" and len(parts) > 1 and parts[1] not in EVERYWHERE:
            assert parts[1] in ALLOWED[package], f"{path}: {package} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_in_their_adapters_only(path):
    relative = path.relative_to(PACKAGE)
    for name in imports(path, top_level_only=True):
        places = ADAPTERS.get(name.split(".")[0])
        if places is not None:
            assert relative.parts[0] in places or str(relative) in places, f"{relative} imports {name} at its top"


HEAVY = ("torch", "onnxruntime", "polygraphy", "tensorrt", "tensorrt_rtx_bindings", "onnxscript")


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = (
        "import sys\nfrom msconv_deploy.cli.main import main\ncode = main(['--help'])\n"
        f"sys.exit(code or [m for m in {HEAVY!r} if m in sys.modules] or 0)"
    )
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        fastest = min(fastest, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert "export" in done.stdout
    print(f"msconv --help: {fastest:.2f} s")


# run in processes of their own
PROGRAMS = ("runtimes/tensorrt_rtx.py", "plugin/check.py")


def test_printing_and_logging_setup_live_in_the_cli_only():
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] == "cli" or str(relative) in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.exit", "logging.basicConfig", "exit"), f"{path}:{node.lineno}"
