"""`msconv plugin check`: libraries that are none, that hold nothing, that crash, and registries that are not there."""

import json
import os
import shutil
import subprocess

import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError, ExitCode, NotAvailableError
from msconv_deploy.plugin import check
from msconv_deploy.plugin.check import LEAN, check_library, find_libraries, installed_registries
from msconv_deploy.reporting.plugin import PluginCreator, PluginField, PluginLibrary

needs_lean = pytest.mark.skipif(
    LEAN not in installed_registries(), reason="no lean TensorRT: pip install 'msconv-deploy[lean]'"
)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiles C++ into a library whose name says TensorRT 11."""
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    if cxx is None:
        pytest.skip("there is no C++ compiler (g++, or CXX)")
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)

    def compile_(text):
        source, library = tmp_path / "plugin.cpp", tmp_path / "libother_trt11.so"
        source.write_text(text)
        subprocess.run([cxx, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        return library

    return compile_


@needs_lean
def test_a_library_that_crashes_takes_only_its_process_down(compiled):
    library = compiled("#include <cstdlib>\nstruct A { A() { std::abort(); } } a;\n")
    with pytest.raises(BadInputError, match="ended the process with signal 6"):
        check_library(library)


@needs_lean
@pytest.mark.parametrize("text", ["int nothing;\n", "extern int missing(); int value = missing();\n"])
def test_a_library_without_creators_is_refused(compiled, text):
    with pytest.raises(BadInputError, match="libother_trt11.so"):
        check_library(compiled(text))


@needs_lean
def test_what_is_no_library(tmp_path, capsys):
    (tmp_path / "libmsconv_trt11.so").write_text("no ELF")
    assert main(["plugin", "check", str(tmp_path / "libmsconv_trt11.so")]) == ExitCode.BAD_INPUT
    assert "does not load" in capsys.readouterr().err


def test_a_missing_file(capsys):
    assert main(["plugin", "check", "nowhere.so"]) == ExitCode.BAD_INPUT
    assert "nowhere.so: no such plugin library" in capsys.readouterr().err


def test_no_registry_of_the_version(tmp_path, capsys):
    (tmp_path / "libmsconv_trt7.so").write_text("")
    assert main(["plugin", "check", str(tmp_path / "libmsconv_trt7.so")]) == ExitCode.NOT_AVAILABLE
    error = capsys.readouterr().err
    assert "no registry of TensorRT 7" in error
    assert "msconv-deploy[lean]" in error


def test_libraries_are_searched(bare, monkeypatch):
    with pytest.raises(NotAvailableError, match="msconv plugin build"):
        find_libraries()
    for path in ("build/plugins/libmsconv_trt11.so", "build/plugins/libmsconv_trt8.so", "other/libmsconv_trt10.so"):
        (bare / path).parent.mkdir(parents=True, exist_ok=True)
        (bare / path).write_text("")
    (bare / "file.so").write_text("")
    monkeypatch.setenv("MSCONV_PLUGIN_PATH", f"{bare / 'other'}:{bare / 'file.so'}")
    assert [p.name for p in find_libraries()] == [
        "libmsconv_trt11.so",
        "libmsconv_trt8.so",
        "libmsconv_trt10.so",
        "file.so",
    ]


def test_what_is_printed_and_written(monkeypatch, tmp_path, capsys):
    field = PluginField(name="sources", type="int32", length=4)
    creator = PluginCreator(
        name="MSConv2d", version="1", namespace="x", interface="IPluginCreatorV3One", fields=[field]
    )
    library = PluginLibrary(library="a.so", registry="tensorrt 11.2.1", creators=[creator])
    monkeypatch.setattr(check, "check_library", lambda path: library)
    assert main(["plugin", "check", "a.so", "--json", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a.so, loaded into tensorrt 11.2.1",
        "  MSConv2d version 1, namespace x (IPluginCreatorV3One)",
        "    sources: int32[4]",
    ]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verb"] == "plugin check"
    assert report["libraries"][0]["creators"][0]["fields"] == [{"name": "sources", "type": "int32", "length": 4}]
