"""The torch-free install with its tests, on every interpreter that is found among Python 3.10 to 3.13.

    python tests/torch_free.py [VERSION...]

Makes a virtual environment per interpreter under build/pythons, installs the package with its test extra and without
torch, checks that torch is really absent, and runs the tests; those that need torch are skipped with the reason. The kernels
and the plugin, which are C++ and the same for every Python, are left to `make test`.
Interpreters that are not found are listed as not run. Exit 1 if a run fails or none was possible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")


def find(version: str) -> str | None:
    """An interpreter of this version: on PATH, or installed by pyenv."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(p) for p in sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for candidate in filter(None, candidates):
        asked = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
        )
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def run(version: str, interpreter: str) -> bool:
    folder = ROOT / "build" / "pythons" / version
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{ROOT}[test]"], check=True)
    absent = subprocess.run([python, "-c", "import importlib.util as u, sys; sys.exit(bool(u.find_spec('torch')))"])
    if absent.returncode:
        print(f"Python {version}: torch is installed, so this is no torch-free run")
        return False
    return subprocess.run([python, "-m", "pytest", "-n", "2", "--ignore", "tests/plugins"], cwd=ROOT).returncode == 0


def main() -> int:
    results = {}
    for version in sys.argv[1:] or VERSIONS:
        interpreter = find(version)
        if interpreter is None:
            results[version] = "not run (no interpreter found)"
            continue
        print(f"== Python {version}, without torch", flush=True)
        results[version] = "passed" if run(version, interpreter) else "FAILED"
    for version, result in results.items():
        print(f"Python {version}: {result}")
    return int("FAILED" in results.values() or "passed" not in results.values())


if __name__ == "__main__":
    sys.exit(main())
