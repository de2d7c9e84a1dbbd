"""What the README says is tried: its commands are run, its Python too, and its numbers are those of the results."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import include_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the repository to a command, without its build folder."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "export", folder / "export")  # a sidecar is not believed about recipes that a link leads to
    for name in ("models", "Makefile", "pyproject.toml", ".ci"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command, cwd):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_every_block_is_known():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_msconv_commands_run_in_order(checkout):
    pytest.importorskip("torch", reason="the README exports a checkpoint: pip install 'msconv-deploy[torch]'")
    commands = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
    ran = 0
    for command in commands:
        if command.startswith("msconv "):
            done = run(shlex.split(command), checkout)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran >= 4


def test_make_targets_exist_and_are_what_ci_runs(checkout):
    """`make export` and `make test` themselves are run by .ci/run: here make has to know how."""
    targets = re.findall(r"^make (\S+)", README, re.MULTILINE)
    assert {"export", "test"} <= set(targets)
    for target in targets:
        done = run(["make", "-n", target], checkout)
        assert done.returncode == 0, done.stderr
        assert f"make {target}" in (ROOT / ".ci" / "run").read_text()


def test_python_examples_run(checkout):
    pytest.importorskip("torch", reason="the example needs torch: pip install 'msconv-deploy[torch]'")
    for language, block in BLOCKS:
        if language == "python":
            done = run([sys.executable, "-c", block], checkout)
            assert done.returncode == 0, done.stderr


def test_tables_are_those_of_the_results():
    for page in include_results.pages():
        text = page.read_text()
        assert include_results.included(text) == text, (
            f"{page.name} is out of date: python benchmarks/include_results.py"
        )
    assert include_results.BLOCK.search(README)


def test_links_lead_somewhere():
    for page in include_results.pages():
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
