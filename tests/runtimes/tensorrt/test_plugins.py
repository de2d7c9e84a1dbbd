"""Plugin libraries and creators, before anything is parsed."""

import os

import pytest

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.ops.forms import Form, convert_form
from msconv_deploy.runtimes.tensorrt import plugins
from msconv_deploy.runtimes.tensorrt.plugins import LoadedLibrary, check_creators, find_libraries, load_libraries
from tests.ops.test_lowerings import two_layers
from tests.runtimes.tensorrt.fakes import fake_tensorrt

OURS = ("MSConv2d", "1", "")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSCONV_PLUGIN_PATH", raising=False)
    monkeypatch.setattr(plugins, "_loaded", {})


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a library")
    return path


def test_libraries_in_all_places_for_one_version_each_once(tmp_path, monkeypatch):
    built = touch(tmp_path / "build" / "plugins" / "libmsconv_trt10.so")
    touch(tmp_path / "build" / "plugins" / "libmsconv_trt11.so")
    other = touch(tmp_path / "far" / "libmsconv_trt10.so")
    named = touch(tmp_path / "mine.so")
    (tmp_path / "link.so").symlink_to(named)
    monkeypatch.setenv(
        "MSCONV_PLUGIN_PATH", os.pathsep.join([str(other.parent), str(tmp_path / "link.so"), "/nowhere"])
    )
    found = find_libraries(10, [named])
    assert [path.resolve() for path in found] == [named, built, other]
    assert len(find_libraries(11)) == 2  # a file of a foreign name is for any version
    with pytest.raises(BadInputError, match="absent.so: no such plugin library"):
        find_libraries(10, [tmp_path / "absent.so"])


def test_a_library_of_another_version_is_not_taken(tmp_path, monkeypatch):
    path = touch(tmp_path / "libmsconv_trt10.so")  # a registry of another version would load it
    monkeypatch.setenv("MSCONV_PLUGIN_PATH", str(path))
    assert (find_libraries(10), find_libraries(11)) == ([path], [])
    with pytest.raises(BadInputError, match="was built for TensorRT 10, but here is TensorRT 11"):
        find_libraries(11, [path])


def test_a_file_that_is_no_library(tmp_path):
    path = touch(tmp_path / "libmsconv_trt10.so")
    with pytest.raises(BadInputError, match=r"libmsconv_trt10.so: the plugin library does not load: .*(header|short)"):
        load_libraries(fake_tensorrt(), [path])


def test_a_library_is_loaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path: None)
    path, tensorrt = touch(tmp_path / "a.so"), fake_tensorrt()
    assert load_libraries(tensorrt, [path]) == [LoadedLibrary(path, (OURS,))] == load_libraries(tensorrt, [path])
    assert tensorrt.creators(tensorrt.registry()) == [OURS]


@pytest.mark.parametrize("version", ["8.6.1", "10.6.0", "11.2.1"])
def test_creators_of_all_versions(version):
    tensorrt = fake_tensorrt(version, registered=[OURS])
    assert tensorrt.creators(tensorrt.registry()) == [OURS]


def test_a_library_without_creators_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path: None)
    tensorrt = fake_tensorrt(registered=[OURS])
    with pytest.raises(BadInputError, match="registers no creator that was not there already.*built for TensorRT 10"):
        load_libraries(tensorrt, [touch(tmp_path / "a.so")])


def test_every_node_has_a_creator(tmp_path):
    model = two_layers()[0]
    check_creators(fake_tensorrt(registered=[OURS]), model, tmp_path / "m.onnx", [])
    check_creators(fake_tensorrt(), convert_form(model, Form.FUSED), tmp_path / "m.onnx", [])


def test_plugin_not_found_says_what_was_loaded_and_the_nearest(tmp_path):
    tensorrt = fake_tensorrt(registered=[("MSConv2D", "1", ""), ("RoiAlign_TRT", "1", "")])
    library = LoadedLibrary(tmp_path / "libother.so", (("MSConv2D", "1", ""),))
    with pytest.raises(NotAvailableError) as failure:
        check_creators(tensorrt, two_layers()[0], tmp_path / "m.onnx", [library])
    text = str(failure.value)
    for part in (
        "m.onnx: node 'one': plugin not found: MSConv2d version 1",
        "libother.so holds MSConv2D version 1",
        "the nearest of all 2 creators: MSConv2D version 1",
        "--form portable",
        "--plugin FILE, MSCONV_PLUGIN_PATH",
    ):
        assert part in text
    assert failure.value.exit_code == 3


def test_plugin_not_found_without_any_library(tmp_path):
    with pytest.raises(NotAvailableError) as failure:
        check_creators(fake_tensorrt("11.2.1"), two_layers()[0], tmp_path / "m.onnx", [])
    text = str(failure.value)
    assert "libraries loaded: none; libmsconv_trt11.so was looked for in build/plugins" in text
    assert "the nearest of all 0 creators: none is like it" in text


def test_another_version_of_the_plugin(tmp_path):
    model = two_layers()[0]
    for node in model.graph.node:
        node.attribute.add(name="plugin_version", type=3, s=b"2")
    with pytest.raises(
        NotAvailableError, match="plugin not found: MSConv2d version 2(.|\n)*nearest .*: MSConv2d version 1"
    ):
        check_creators(fake_tensorrt(registered=[OURS]), model, tmp_path / "m.onnx", [])
