"""`msconv package` by several processes at a time, and killed at any step."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("tritonclient", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError
from msconv_deploy.serving.triton import repository as repository_module
from msconv_deploy.serving.triton.repository import locked, staging
from tests.serving.networks import four_sources
from tests.serving.servers import PROGRAM

ROOT = Path(__file__).parents[2]


def start(model, repository, *options):
    command = [sys.executable, "-c", PROGRAM, "package", str(model), "--triton", str(repository), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_several_at_the_same_time(tmp_path):
    """One repository, that nobody has made yet: every model is there, and the shared files name them all."""
    model, repository = four_sources(tmp_path / "m.onnx"), tmp_path / "new" / "repository"
    processes = [start(model, repository, "--name", name) for name in ("a", "b", "b")]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    names = sorted(path.name for path in repository.iterdir())
    assert names == ["README.md", "a", "b", "compose.yaml", "inferenceservice.yaml"]
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]
    readme = (repository / "README.md").read_text()
    assert all(f"v2/models/{name}" in readme or f"`{name}`" in readme for name in "ab"), readme


def test_who_waits_is_told(tmp_path, capsys):
    model = four_sources(tmp_path / "m.onnx")
    with locked(tmp_path / "repository"):
        process = start(model, tmp_path / "repository")
        assert process.stderr is not None
        said = ""
        while "waiting for another msconv package" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert not (tmp_path / "repository").exists()
    assert process.communicate(timeout=60)
    assert process.returncode == 0


def test_folders_above_are_made_and_removed(tmp_path):
    place = tmp_path / "a" / "b"

    def fail():
        with locked(place / "repository"):
            assert place.is_dir()
            raise BadInputError("no")

    with pytest.raises(BadInputError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with locked(place / "repository"):
        (place / "repository").mkdir()
    assert (place / "repository").is_dir()


def test_a_folder_that_was_removed_while_one_waited_is_made_again(tmp_path):
    place = tmp_path / "a" / "repository"
    waits, entered = threading.Event(), threading.Event()

    def second():
        with locked(place, waits.set):
            assert place.parent.is_dir()
            entered.set()

    with locked(place):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        time.sleep(0.05)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        caplog.at_level("WARNING", "msconv_deploy"),
        locked(tmp_path / "repository"),
    ):  # a quiet verb may have run before
        pass
    assert "cannot be locked: package one model at a time" in caplog.text


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path):
    for name in (".repository.msconv-abc", ".repository.backup", "repository.msconv-x"):
        (tmp_path / name).mkdir()
    with locked(tmp_path / "repository"), staging(tmp_path / "repository") as folder:
        assert folder.parent == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == [".repository.backup", "repository.msconv-x"]


def test_a_later_file_that_fails_undoes_the_earlier_ones(tmp_path, monkeypatch):
    model = four_sources(tmp_path / "m.onnx")
    arguments = ["package", str(model), "--triton", str(tmp_path / "repository"), "-q"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    swap, count = repository_module._swap, []

    def fail(source, place, there):
        count.append(place.name)
        if len(count) == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        swap(source, place, there)

    monkeypatch.setattr(repository_module, "_swap", fail)
    assert main([*arguments, "--name", "other"]) == 2
    assert len(set(count[:4])) == 4
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_killed_at_every_step(tmp_path):
    """The model's folder is the old one or the new one, every file is whole, and the same command again completes it."""
    command = [sys.executable, "-m", "tests.serving.killed_package", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for kills in json.loads((tmp_path / "found.json").read_text()).values():
        assert len(kills) >= 10
        for kill in kills:
            assert kill["model"] in (["old"], ["new"])
            assert kill["torn files"] == []
            assert (kill["again"], kill["healed"], kill["left over"]) == (0, True, [])
        assert {kill["model"][0] for kill in kills} == {"old", "new"}
        assert {kill["left"] for kill in kills} == {0, 1}
