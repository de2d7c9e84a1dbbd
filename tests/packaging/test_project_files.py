"""The files about the project: locks, image, citation, and that pages name what is there."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msconv_deploy import __version__
from tests.packaging.distributions import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCKS = ["requirements.txt", "requirements-image.txt"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(file: str) -> dict[str, tuple[str, int]]:
    """Package -> version, number of hashes."""
    text = (ROOT / ".ci" / file).read_text()
    blocks = re.split(r"^(?=[a-z])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    found = {}
    for block in filter(str.strip, blocks):
        name, version = re.match(r"([\w.-]+)==([\w.+]+)", block).groups()
        found[normal(name)] = version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block))
    return found


def wanted(extras: list[str]) -> list[str]:
    """Requirements of the package with extras."""
    return [*PROJECT["dependencies"], *(r for extra in extras for r in PROJECT["optional-dependencies"][extra])]


@pytest.mark.parametrize("file", LOCKS)
def test_every_locked_package_has_a_hash(file):
    assert all(hashes for _, hashes in locked(file).values())
    assert len(locked(file)) > 30


def test_the_lock_of_ci_has_everything_that_make_test_installs():
    """`make lock` after a change of pyproject.toml."""
    extras = re.search(r"^TEST_EXTRAS := (.*)$", MAKEFILE, re.MULTILINE)[1].split(",")
    assert set(re.search(r"^EXPORT_EXTRAS := (.*)$", MAKEFILE, re.MULTILINE)[1].split(",")) <= set(extras)
    check(wanted(extras), locked("requirements.txt"), absent={"tomli"})
    assert "setuptools" in locked("requirements.txt")


def test_the_lock_of_the_image_has_everything_but_what_the_image_brings():
    packages = locked("requirements-image.txt")
    check(wanted(["serve"]), packages, absent={"tomli", "onnxruntime"})
    assert {"onnxruntime-gpu", "setuptools", "cmake", "ninja"} <= set(packages)
    assert not {"onnxruntime", "tensorrt", "torch"} & set(packages)


def check(requirements: list[str], packages: dict[str, tuple[str, int]], absent: set[str]) -> None:
    for requirement in requirements:
        name, operator, version = re.match(r"([\w.-]+)(?:\[[^]]*\])?(==|>=)([\w.*]+)", requirement).groups()
        if name in absent:
            continue
        assert normal(name) in packages, f"{requirement}: not locked; make lock"
        have = packages[normal(name)][0]
        if operator == "==" and "*" not in version:
            assert have == version, f"{requirement}: {have} is locked; make lock"
        elif operator == ">=":
            assert numbers(have) >= numbers(version), f"{requirement}: {have} is locked; make lock"


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def test_ci_installs_from_the_lock():
    assert "LOCKED=.ci/requirements.txt" in (ROOT / ".ci" / "run").read_text()
    command = ["make", "-n", "-B", "export", "LOCKED=.ci/requirements.txt"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (
        "--require-hashes --no-deps -r .ci/requirements.txt" in said
    )  # nothing is resolved, so nothing newer is looked at
    assert "--no-deps --no-build-isolation -e ." in said
    users = subprocess.run(
        ["make", "-n", "-B", "export", "LOCKED="], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--require-hashes" not in users.stdout
    assert "-e '.[torch,rtx]'" in users.stdout


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([CLEAN], 0, "no known vulnerability"),
        ([CLEAN, FLAWED], 1, "b 2: PYSEC-1, fixed in 3"),
        ([CLEAN, UNKNOWN], 3, "1 of 2 packages were not looked up: not found"),
        ([UNKNOWN, FLAWED], 1, "PYSEC-1"),
        ([], 3, "no package was looked up"),
    ],
)
def test_an_audit_counts_what_was_not_looked_up_as_not_audited(audit, packages, code, said):
    judged, lines = audit.judged(packages)
    assert judged == code
    assert said in "\n".join(lines)


def test_the_audit_says_why_it_was_not_done(audit, monkeypatch, capsys):
    monkeypatch.setattr(audit, "audited", lambda lock, service: ([], "no answer"))
    assert audit.main([]) == 3
    assert "not done: osv: no answer; pypi: no answer" in capsys.readouterr().out
    assert audit.main(["absent.txt"]) == 2


def test_the_dockerfile_copies_what_is_there_and_says_that_it_was_not_built():
    text = (ROOT / "Dockerfile").read_text()
    assert "THIS IMAGE HAS NOT BEEN BUILT YET" in text
    shown = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in shown, f"{source} is not in .dockerignore's list"
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    for word in ("HEALTHCHECK", "EXPOSE 8000 8001", 'ENTRYPOINT ["msconv"]'):
        assert word in text


def test_the_dockerfile_passes_hadolint():
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(ROOT / "build" / "tools" / "bin"))
    if program is None:
        pytest.skip("hadolint is not installed: make lint-docker installs it and runs it")
    done = subprocess.run([program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert not {"doi", "url", "repository-code"} & set(citation)  # there is none yet


@pytest.mark.parametrize("page", ["SECURITY.md", "CONTRIBUTING.md"])
def test_pages_name_files_and_targets_that_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:tests|msconv_deploy|plugins|\.ci|docs)/[\w./-]*)`", text)
    named += [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [t for t in re.findall(r"`make ([a-z-]+)", text) if f"\n{t}: " not in MAKEFILE] == []


def test_the_changelog_has_this_version():
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_the_one_that_is_declared():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert Path(ROOT / "LICENSE").name in PROJECT["license-files"]
