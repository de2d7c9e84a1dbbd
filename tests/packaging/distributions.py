"""Wheel and sdist: built, and held to what they must and must not contain."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "msconv_deploy/plugin/sources/"
SOURCE_SUFFIXES = {".cpp", ".cu", ".h", ".map"}
_HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, output: Path, python: str = sys.executable) -> Path:
    """Build a ``wheel`` or ``sdist`` with the interpreter's own setuptools, without any download."""
    output.mkdir(parents=True, exist_ok=True)
    command = [python, "-c", _HOOK, f"build_{kind}", str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"building the {kind} failed:\n{done.stdout}{done.stderr}")
    return output / done.stdout.splitlines()[-1]


def tracked_copy(folder: Path) -> Path:
    """The checkout's files without what is built or ignored: a build beside them leaves no trace there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def unpacked(sdist: Path, folder: Path) -> Path:
    """The folder that an sdist holds."""
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


def names_in(file: Path) -> list[str]:
    """Files of a wheel, or of an sdist without its leading folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    with tarfile.open(file) as tar:
        return [member.name.partition("/")[2] for member in tar if member.isfile()]


def expected_in_package() -> set[str]:
    """Every Python file of the package, its data, and the plugin's sources."""
    package = ROOT / "msconv_deploy"
    own = [p for pattern in ("*.py", "*.jinja", "py.typed") for p in package.rglob(pattern)]
    plugins = ROOT / "plugins"
    sources = [plugins / "CMakeLists.txt"]
    sources += [
        p
        for part in ("kernels", "tensorrt")
        for p in (plugins / "msconv" / part).iterdir()
        if p.is_file() and p.suffix in SOURCE_SUFFIXES
    ]
    return {p.relative_to(ROOT).as_posix() for p in own} | {
        SOURCES + p.relative_to(plugins).as_posix() for p in sources
    }


def problems(wheel: Path) -> list[str]:
    """What is wrong with the contents of a wheel; empty if nothing is."""
    names = names_in(wheel)
    package = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    found = [f"missing: {name}" for name in sorted(expected_in_package() - package)]
    found += [f"does not belong there: {name}" for name in sorted(package - expected_in_package())]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        found.append("missing: LICENSE")
    return found


def metadata(wheel: Path) -> dict[str, Sequence[str]]:
    """Field -> values of the wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(archive.read(name).decode())
    return {key: [str(value) for value in message.get_all(key, [])] for key in message}
