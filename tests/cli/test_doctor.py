"""`msconv doctor`: what is found, what is not, what to do."""

import json
import stat
import time

import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.reporting import DoctorReport
from msconv_deploy.runtimes import environment, gpu, places


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine where the search finds only what a test puts into tmp_path."""
    for name in (
        "TENSORRT_ROOT",
        "TENSORRT_INCLUDE_DIR",
        "LD_LIBRARY_PATH",
        "CUDACXX",
        "CUDA_HOME",
        "CUDA_PATH",
        "MSCONV_PLUGIN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(places, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(places, "site_packages", lambda: [tmp_path / "site-packages"])
    monkeypatch.setattr(environment, "describe", lambda: (None, None))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(capsys, tmp_path) -> tuple[int, DoctorReport, str]:
    code = main(["doctor", "--json", str(tmp_path / "doctor.json"), "--force"])
    return code, DoctorReport.model_validate_json((tmp_path / "doctor.json").read_text()), capsys.readouterr().out


def test_finds_what_is_installed(capsys, tmp_path):
    start = time.perf_counter()
    code, found, out = report(capsys, tmp_path)
    assert time.perf_counter() - start < 3  # no import of torch or TensorRT
    assert code == 0
    by_name = {f.name: f for f in found.findings}
    import numpy
    import onnxruntime

    assert by_name["numpy"].version == numpy.__version__
    assert by_name["execution providers"].version == onnxruntime.__version__
    assert "CPUExecutionProvider" in by_name["execution providers"].where
    for name in (
        "torch",
        "tensorrt",
        "tensorrt-rtx",
        "NVIDIA GPU",
        "libnvinfer",
        "Python package",
        "headers",
        "nvcc",
        "plugin library",
    ):
        finding = by_name[name]
        assert finding.status == "found" or finding.advice, name
        assert name in out
    assert found.versions["numpy"] == numpy.__version__


def test_a_missing_required_package_is_exit_code_3(capsys, tmp_path, monkeypatch):
    real = environment.distribution_version
    monkeypatch.setattr(environment, "distribution_version", lambda *n: None if "polygraphy" in n else real(*n))
    code, found, out = report(capsys, tmp_path)
    assert code == 3
    assert not found.usable
    assert "required, but missing: polygraphy: pip install polygraphy" in out


def test_two_onnx_runtimes_clash(capsys, tmp_path, monkeypatch):
    real = environment.distribution_version
    monkeypatch.setattr(
        environment, "distribution_version", lambda *n: "1.2" if n == ("onnxruntime-gpu",) else real(*n)
    )
    code, _, out = report(capsys, tmp_path)
    assert code == 0
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in out


def test_nothing_is_invented_on_a_bare_machine(bare, capsys):
    _, found, _ = report(capsys, bare)
    for finding in found.findings:
        if finding.group in ("TensorRT", "CUDA", "plugin") and not finding.where.startswith("/usr"):
            assert finding.status == "missing", finding
            assert finding.advice


@pytest.mark.parametrize("prefix", ["NV_TENSORRT_{}", "TRT_{}_ENTERPRISE"])
@pytest.mark.parametrize("place", ["TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR", "cache"])
def test_headers_and_their_version(bare, monkeypatch, prefix, place):
    include = bare / "cache" / "tensorrt-headers" / "v11" / "include" if place == "cache" else bare / "trt" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").write_text("")
    macros = zip(("MAJOR", "MINOR", "PATCH", "BUILD"), (11, 1, 0, 106), strict=True)
    (include / "NvInferVersion.h").write_text("".join(f"#define {prefix.format(w)} {v} //!< x\n" for w, v in macros))
    if place != "cache":
        monkeypatch.setenv(place, str(include if place.endswith("DIR") else include.parent))
    finding = environment.tensorrt_headers()
    assert (finding.status, finding.version, finding.where) == ("found", "11.1.0", str(include))


def test_libraries_in_all_places(bare, monkeypatch):
    for folder, name in (("trt/lib", "libnvinfer.so.10.6.0"), ("cache/tensorrt/11.2.1/lib", "libnvinfer.so.11")):
        (bare / folder).mkdir(parents=True)
        (bare / folder / name).write_text("")
    (bare / "trt" / "lib" / "libnvinfer.so").symlink_to("libnvinfer.so.10.6.0")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{bare / 'trt' / 'lib'}")
    found = {f.version: f.where for f in environment.tensorrt_libraries() if f.where.startswith(str(bare))}
    assert set(found) == {"10.6.0", "11"}


@pytest.mark.parametrize("place", ["bin", "cuda/bin", "site-packages/nvidia/cu13/bin"])
def test_nvcc(bare, monkeypatch, place):
    program = bare / place / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    if place.startswith("cuda"):
        monkeypatch.setenv("CUDA_HOME", str(bare / "cuda"))
    finding = environment.nvcc()
    if finding.where.startswith("/usr"):
        pytest.skip("this machine has a CUDA toolkit in /usr/local/cuda, which comes first")
    assert (finding.status, finding.version, finding.where) == ("found", "13.0", str(program))


def test_plugin_library(bare, monkeypatch):
    built = bare / "build" / "plugins" / "libmsconv_trt11.so"
    built.parent.mkdir(parents=True)
    built.write_text("")
    (bare / "elsewhere").mkdir()
    other = bare / "elsewhere" / "libmsconv_trt10.so"
    other.write_text("")
    monkeypatch.setenv("MSCONV_PLUGIN_PATH", f"{bare / 'elsewhere'}:{bare / 'nowhere'}")
    findings = environment.plugin_libraries()
    assert {f.version for f in findings if f.status == "found"} == {"for TensorRT 10", "for TensorRT 11"}
    problem = next(f for f in findings if f.status == "problem")
    assert "nowhere: no such file or folder" in problem.where


def test_json_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "doctor.json").write_text("precious")
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "doctor.json").read_text() == "precious"


def test_quiet_and_schema(capsys, tmp_path):
    assert main(["doctor", "-q", "--json", str(tmp_path / "d.json")]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 3
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["verb"] == "doctor"
    assert content["schema_version"] == 1


class FakeDriver:
    """libcuda with two devices."""

    def __init__(self, init: int = 0, devices: int = 2) -> None:
        self.init, self.devices = init, devices

    def cuInit(self, flags):  # noqa: N802  (the driver's names)
        return self.init

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 13030
        return 0

    def cuDeviceGetName(self, name, length, index):  # noqa: N802
        name.value = b"Test GPU"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, index):  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_gpus_are_asked_through_the_driver(monkeypatch):
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: FakeDriver())
    found = environment.gpu()
    assert (found.status, found.version) == ("found", "CUDA 13.3")
    assert found.where == ", ".join(["Test GPU (compute capability 9.0)"] * 2)


@pytest.mark.parametrize("driver", [FakeDriver(init=100), FakeDriver(devices=0)])
def test_a_driver_without_a_device_is_no_gpu(monkeypatch, driver):
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: driver)
    found = environment.gpu()
    assert found.status == "missing"
    assert f"cuInit returned {driver.init}" in found.where
