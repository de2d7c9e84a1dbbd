"""`msconv plugin build`: what it finds, what it writes, and how it fails."""

import json

import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode, NotAvailableError
from msconv_deploy.plugin import build, toolkit
from msconv_deploy.plugin.build import build_plugin, sources_sha256


def build_command(machine, *more):
    return main(["plugin", "build", "--source", str(machine / "sources"), *more])


def test_it_writes_the_library_and_a_sidecar(machine, capsys):
    assert build_command(machine, "--json", "report.json") == 0
    library = machine / "build" / "plugins" / "libmsconv_trt11.so"
    assert library.read_text() == "first\n"
    sidecar = json.loads(library.with_suffix(".json").read_text())
    assert sidecar == json.loads((machine / "report.json").read_text())
    assert sidecar["verb"] == "plugin build"
    assert sidecar["tensorrt_version"] == "11.1.0"
    assert sidecar["nvcc_version"] == "13.0"
    assert sidecar["architectures"] == ["75", "80", "86", "89", "90"]  # those that this compiler knows
    assert sidecar["sources_sha256"] == sources_sha256(machine / "sources")
    out, err = capsys.readouterr()
    assert "for TensorRT 11, compute capabilities 75, 80, 86, 89, 90" in out
    assert "configuring for TensorRT 11.1.0, CUDA 13.0" in err


def test_an_existing_library_is_replaced_only_when_asked(machine, capsys):
    assert build_command(machine, "-q") == 0
    (machine / "sources" / "msconv" / "kernels" / "kernel.cu").write_text("second\n")
    before = sources_sha256(machine / "sources")
    assert build_command(machine, "-q") == ExitCode.BAD_INPUT
    assert "--force" in capsys.readouterr().err
    library = machine / "build" / "plugins" / "libmsconv_trt11.so"
    assert library.read_text() == "first\n"
    assert build_command(machine, "-q", "--force") == 0
    assert library.read_text() == "second\n"
    assert json.loads(library.with_suffix(".json").read_text())["sources_sha256"] == before


@pytest.mark.parametrize(("version", "name"), [("10", "libmsconv_trt10.so"), ("11.1", "libmsconv_trt11.so")])
def test_the_version_of_tensorrt_is_chosen(machine, version, name):
    report = build_plugin(tensorrt=version, source=machine / "sources")
    assert report.library == f"build/plugins/{name}"


def test_architectures_are_chosen(machine):
    report = build_plugin(source=machine / "sources", architectures=["8.6", "sm_90;75", "86"])
    assert report.architectures == ["86", "90", "75"]
    assert (machine / "build/plugins/.cmake/architectures").read_text() == "86-real;90-real;75"


def test_other_sources_in_the_same_place_start_afresh(machine):
    build_plugin(source=machine / "sources")
    (machine / "sources").rename(machine / "moved")
    assert build_plugin(source=machine / "moved", force=True).sources == str(machine / "moved")


def test_a_failing_compiler_is_exit_code_4_with_its_last_lines(machine, capsys):
    assert build_command(machine, "-q") == 0
    library = machine / "build" / "plugins" / "libmsconv_trt11.so"
    (machine / "sources" / "msconv" / "kernels" / "kernel.cu").write_text("error\n")
    assert build_command(machine, "-q", "--force") == ExitCode.BUILD_FAILED
    error = capsys.readouterr().err
    assert "kernel.cu(3): error: expected a semicolon" in error
    assert "build/plugins/.cmake/libmsconv_trt11.log" in error
    assert library.read_text() == "first\n"
    assert "expected a semicolon" in (machine / "build/plugins/.cmake/libmsconv_trt11.log").read_text()
    assert {p.name for p in library.parent.iterdir()} == {".cmake", library.name, library.with_suffix(".json").name}


def test_a_failing_configuration_is_exit_code_4_and_can_be_repaired(machine, capsys):
    bad = machine / "sources" / "msconv" / "kernels" / "unknown_header.cu"
    bad.write_text("")
    assert build_command(machine, "-q") == ExitCode.BUILD_FAILED
    error = capsys.readouterr().err
    assert "CMake failed" in error
    assert "no such header" in error
    assert not (machine / "build/plugins/libmsconv_trt11.so").exists()
    bad.unlink()
    assert build_command(machine, "-q") == 0


def test_everything_that_is_missing_is_said_at_once(bare, capsys):
    assert main(["plugin", "build"]) == ExitCode.NOT_AVAILABLE
    error = capsys.readouterr().err
    for what in ("nvcc", "cmake 3.24", "ninja"):
        assert f"- {what}" in error
    assert error.count("pip install 'msconv-deploy[plugin]'") == 3
    assert not (bare / "build").exists()


def test_a_compiler_that_is_named_must_be_there(machine, monkeypatch, capsys):
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    assert build_command(machine) == ExitCode.NOT_AVAILABLE
    assert "CUDACXX=/nowhere/nvcc" in capsys.readouterr().err


def test_a_program_that_does_not_run(machine, capsys):
    (machine / "bin" / "nvcc").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    assert build_command(machine) == ExitCode.NOT_AVAILABLE
    assert "does not run: broken" in capsys.readouterr().err


def test_an_old_cmake_is_not_taken(machine):
    (machine / "bin" / "cmake").unlink()
    (machine / "bin" / "cmake").write_text("#!/bin/sh\necho cmake version 3.10.2\n")
    (machine / "bin" / "cmake").chmod(0o755)
    with pytest.raises(NotAvailableError, match="is 3.10.2, too old"):
        toolkit.find_cmake()


def test_no_headers(machine, capsys):
    assert build_command(machine, "--tensorrt", "9") == ExitCode.NOT_AVAILABLE
    error = capsys.readouterr().err
    assert "no C++ headers of TensorRT 9" in error
    assert "--download" in error
    assert "11.1.0 in" in error
    assert "10.6.0 in" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensorrt", "newest"], "is no version"),
        (["--arch", "ampere"], "--arch ampere"),
        (["--source", "elsewhere"], "is not the folder plugins"),
    ],
)
def test_bad_arguments(machine, capsys, arguments, message):
    assert build_command(machine, *arguments) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err


def test_outside_a_checkout_the_packages_own_sources_are_taken(machine, monkeypatch):
    monkeypatch.setattr(build, "CHECKOUT_SOURCES", machine / "absent")
    monkeypatch.setattr(build, "PACKAGED_SOURCES", machine / "sources")
    assert build_plugin().sources == str(machine / "sources")


def test_without_any_sources_they_are_asked_for(machine, monkeypatch, capsys):
    monkeypatch.setattr(build, "CHECKOUT_SOURCES", machine / "absent")
    monkeypatch.setattr(build, "PACKAGED_SOURCES", machine / "absent")
    assert main(["plugin", "build"]) == ExitCode.NOT_AVAILABLE
    assert "--source DIR" in capsys.readouterr().err
