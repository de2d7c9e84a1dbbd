"""The torch-free install with its tests, on every interpreter that is found among Python 3.10 to 3.13.

    python tests/torch_free.py [VERSION...]

Builds an sdist and from it the wheel, and checks what they hold. Makes a virtual environment per interpreter under
build/pythons, installs that wheel with its test extra and without torch, checks that torch is really absent, uses the
program outside the checkout, and runs the tests on the installed package; those that need torch are skipped with the
reason. The kernels and the plugin, which are C++ and the same for every Python, are left to `make test`.
Interpreters that are not found are listed as not run. Exit 1 if a run fails or none was possible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.packaging.distributions import build, problems, tracked_copy, unpacked

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "pythons"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
SERVING = (VERSIONS[0], VERSIONS[-1])
"""Where the extra of `msconv serve` and `msconv package` is installed too, and tested."""


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


def make_wheel() -> Path:
    """The wheel, built from the sdist as a package index's users would."""
    work = FOLDER / "wheel"
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(work / "tools")], check=True)
    python = str(work / "tools" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "setuptools>=77"]
    subprocess.run(install, check=True)
    sdist = build("sdist", tracked_copy(work / "source"), work / "sdist", python)
    wheel = build("wheel", unpacked(sdist, work / "unpacked"), work / "dist", python)
    for problem in (found := problems(wheel)):
        print(f"{wheel.name}: {problem}")
    if found:
        raise SystemExit(1)
    return wheel


def run(version: str, interpreter: str, wheel: Path) -> bool:
    folder = FOLDER / version
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    extras = "test,serve" if version in SERVING else "test"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[{extras}]"], check=True
    )
    absent = subprocess.run([python, "-c", "import importlib.util as u, sys; sys.exit(bool(u.find_spec('torch')))"])
    if absent.returncode:
        print(f"Python {version}: torch is installed, so this is no torch-free run")
        return False
    if not works_outside_the_checkout(folder, python):
        return False
    # Behind site-packages: the tests are found, and the package is the installed one.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "checkout.pth").write_text(f"{ROOT}\n")
    pytest = [str(folder / "bin" / "pytest"), "-n", "2", "-o", "pythonpath=", "--ignore", "tests/plugins"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "MSCONV_INSTALLED": str(packages)}
    return subprocess.run(pytest, cwd=ROOT, env=environment).returncode == 0


def works_outside_the_checkout(folder: Path, python: str) -> bool:
    """The program, on a model with one site, in a folder of its own."""
    work = folder / "work"
    work.mkdir()
    make = (
        f"import sys; from pathlib import Path; sys.path.append({str(ROOT)!r})\n"
        "from tests.tile_models import tiled_conv; tiled_conv(Path('m.onnx'))"
    )
    commands = [
        [python, "-c", make],
        *(
            [str(folder / "bin" / "msconv"), *arguments.split()]
            for arguments in (
                "--version",
                "inspect m.onnx",
                "optimize m.onnx -o o.onnx --when always --html o.html",
                "validate o.onnx --reference m.onnx",
                "diff m.onnx o.onnx",
            )
        ),
    ]
    for command in commands:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return False
    return True


def main() -> int:
    wheel = make_wheel()
    results = {}
    for version in sys.argv[1:] or VERSIONS:
        interpreter = find(version)
        if interpreter is None:
            results[version] = "not run (no interpreter found)"
            continue
        print(f"== Python {version}, without torch", flush=True)
        results[version] = "passed" if run(version, interpreter, wheel) else "FAILED"
    for version, result in results.items():
        print(f"Python {version}: {result}")
    return int("FAILED" in results.values() or "passed" not in results.values())


if __name__ == "__main__":
    sys.exit(main())
