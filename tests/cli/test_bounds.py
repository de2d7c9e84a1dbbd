"""What a verb may take of memory and time."""

import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.cli import memory
from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError, UnverifiedError
from msconv_deploy.runtimes import Settings
from msconv_deploy.runtimes.onnx_runtime import make_session, run_limit


def save(path, nodes, initializers=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def endless(path):
    """A Loop without a count whose condition stays true."""
    kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "go_on": TensorProto.BOOL}
    count, go, go_on = (helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items())
    before, after = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("v", "w"))
    steps = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Neg", ["v"], ["w"])]
    body = helper.make_graph(steps, "b", [count, go, before], [go_on, after])
    return save(path, [helper.make_node("Loop", ["", "", "x"], ["y"], body=body)])


def test_a_run_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("MSCONV_RUN_SECONDS", "1")
    path = endless(tmp_path / "endless.onnx")
    session = make_session(path, Settings(threads=1))
    for _ in range(2):
        with pytest.raises(UnverifiedError, match="took longer than 1 s .* Loop without end.* set MSCONV_RUN_SECONDS"):
            session.run(None, {"x": np.ones(2, np.float32)})
    assert main(["validate", str(path), "--reference", str(path), "--no-rtx", "-q"]) == 3


def test_a_run_that_fails_in_time_says_its_own_error(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [numpy_helper.from_array(np.array([5], np.int64), "s")])
    with pytest.raises(Exception, match="cannot be reshaped"):
        make_session(path, Settings()).run(None, {"x": np.ones(2, np.float32)})


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan"])
def test_a_limit_is_a_positive_number(monkeypatch, text):
    monkeypatch.setenv("MSCONV_RUN_SECONDS", text)
    with pytest.raises(BadInputError, match="expected a number of seconds above 0"):
        run_limit()


def test_the_limit_is_ten_minutes_if_nothing_is_said(monkeypatch):
    monkeypatch.delenv("MSCONV_RUN_SECONDS", raising=False)
    assert run_limit() == 600


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are set on Linux only")
def test_memory_is_bounded_by_what_is_free():
    """In a process of its own: half of what is free can be had, twice of it cannot, and afterwards the limit is as before."""
    code = (
        "import resource, mmap\n"
        "from msconv_deploy.cli import memory\n"
        "memory._available = lambda: 1 << 30\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "with memory.limits_kept():\n"
        "    memory.bound_memory()\n"
        "    mmap.mmap(-1, 1 << 29, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()\n"
        "    try:\n"
        "        bytearray(2 << 30)\n"
        "    except MemoryError:\n"
        "        print('refused')\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are set on Linux only")
def test_a_limit_of_the_user_stays(monkeypatch):
    given = resource.getrlimit(resource.RLIMIT_DATA)
    used = memory._own_data()
    assert used is not None
    with memory.limits_kept():
        resource.setrlimit(resource.RLIMIT_DATA, (used + (4 << 30), given[1]))
        monkeypatch.setattr(memory, "_available", lambda: 1 << 40)
        memory.bound_memory()
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == used + (4 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == given
