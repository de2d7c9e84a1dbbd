"""What is missing is found, and named, before anything of TensorRT is made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from msconv_deploy.errors import NotAvailableError
from msconv_deploy.runtimes import environment, gpu, places
from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt import bindings
from tests.ops.test_lowerings import two_layers
from tests.runtimes.tensorrt.fakes import H200, fake_module

ROOT = Path(__file__).parents[3]
THIS_PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
COMPLETE = [  # those whose bindings are for this Python
    p.parent
    for p in sorted((places.CACHE / "tensorrt").expanduser().glob("*/complete"))
    if any(f"Tag: {THIS_PYTHON}-" in wheel.read_text() for wheel in p.parent.glob("python/*.dist-info/WHEEL"))
]
PLUGINS = sorted((ROOT / "build" / "plugins").glob(environment.PLUGIN_PATTERN))


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k not in bindings._MODULES})


def package(folder, body):
    """A package of this test's own: its name cannot be taken for TensorRT's."""
    (folder / "fake_trt_package").mkdir(parents=True)
    (folder / "fake_trt_package" / "__init__.py").write_text(body)
    return "fake_trt_package"


@pytest.fixture
def has_gpu(monkeypatch):
    monkeypatch.setattr(bindings, "probe", lambda: ([H200], ""))


def missing(**how):
    with pytest.raises(NotAvailableError) as failure:
        bindings.require(**how)
    assert failure.value.exit_code == 3
    return str(failure.value)


def test_everything_that_is_missing_is_named_at_once(monkeypatch):
    monkeypatch.setattr(bindings, "probe", lambda: ([], "no driver library libcuda.so.1"))
    monkeypatch.setattr(bindings, "_MODULES", ("no_such_tensorrt",))
    text = missing()
    assert "\n  - no NVIDIA GPU: no driver library libcuda.so.1" in text
    assert "\n  - no package tensorrt: pip install 'msconv-deploy[gpu]'" in text
    assert "msconv doctor" in text


def test_a_package_without_its_libraries(tmp_path, monkeypatch, has_gpu):
    reason = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(bindings, "_MODULES", (package(tmp_path, f"raise ImportError({reason!r})"),))
    monkeypatch.syspath_prepend(tmp_path)
    text = missing()
    assert f"is there, but does not load: {reason}. It must be built for this Python" in text
    assert "add TensorRT's lib folder to LD_LIBRARY_PATH" in text
    assert "no NVIDIA GPU" not in text


def test_a_package_that_needs_another_one(tmp_path, monkeypatch, has_gpu):
    monkeypatch.setattr(bindings, "_MODULES", (package(tmp_path, "import no_such_dependency"),))
    monkeypatch.syspath_prepend(tmp_path)
    assert "it needs no_such_dependency" in missing()


@pytest.mark.parametrize(("version", "works"), [("8.4.3", False), ("8.6.1", True), ("9.3.0", False), ("10.0.1", True),
                                                ("11.4.0.1", True), ("12.0.0", False)])  # fmt: skip
def test_versions(monkeypatch, has_gpu, version, works):
    module = ModuleType("some_tensorrt")
    module.__dict__.update(fake_module(version if works else "10.0.0").__dict__, __version__=version)
    monkeypatch.setitem(sys.modules, "some_tensorrt", module)
    monkeypatch.setattr(bindings, "_MODULES", ("some_tensorrt",))
    if works:
        assert bindings.require().version == version
    else:
        assert f"TensorRT {version} is installed; this program works with TensorRT 8.6, 10 and 11" in missing()


def test_a_root_without_libraries(tmp_path, monkeypatch, has_gpu):
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert f"TENSORRT_ROOT={tmp_path}: there is no lib/libnvinfer.so.<version>" in missing()


def test_a_root_with_broken_libraries(tmp_path, monkeypatch, has_gpu):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libnvinfer.so.10").write_text("not a library")
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert "libnvinfer.so.10 does not load" in missing()


def test_a_root_whose_wheel_is_not_installed(tmp_path, monkeypatch, has_gpu):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libnvinfer.so.10").write_text("")
    (tmp_path / "python").mkdir()
    wheel = tmp_path / "python" / f"tensorrt-10.6.0-cp{sys.version_info[0]}{sys.version_info[1]}-none-linux_x86_64.whl"
    wheel.write_text("")
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    monkeypatch.setattr(bindings.importlib.util, "find_spec", lambda name: None)
    assert f"its Python package is not installed: pip install {wheel}" in missing()


def test_a_builder_resource_that_does_not_load_is_only_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libnvinfer_builder_resource.so.10.6.0").write_text("not a library")
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    bindings.preload_builder_resource()
    assert "libnvinfer_builder_resource.so.10.6.0 does not load" in caplog.text


def test_no_driver_and_no_device(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpu.ctypes, "CDLL", absent)
    assert gpu.probe() == ([], "no driver library libcuda.so.1")


def test_capability_text():
    assert Gpu("x", (8, 9), (13, 0)).capability_text == "8.9"


# -- the real TensorRT, where it is unpacked -------------------------------------------------------------------------

complete = pytest.mark.parametrize(
    "root",
    [pytest.param(root, id=root.name) for root in COMPLETE]
    or [pytest.param(None, marks=pytest.mark.skip(reason="no complete TensorRT in ~/.cache/msconv-deploy/tensorrt"))],
)


def in_process(root, code, *arguments):
    """The exit code (a crash is negative), what was printed, and errors."""
    environ = {k: v for k, v in os.environ.items() if k not in ("MSCONV_PLUGIN_PATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=environ | {"TENSORRT_ROOT": str(root)}, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@complete
def test_the_real_bindings_are_imported_through_tensorrt_root(root):
    code = """
import sys
from msconv_deploy.runtimes.tensorrt.bindings import describe, import_bindings
module = import_bindings()
import tensorrt
assert tensorrt is module and "polygraphy" not in sys.modules
print(module.__version__, describe()[0])
"""
    status, out, err = in_process(root, code)
    assert status == 0, err
    imported, described = out.split()
    assert imported == described
    assert imported.startswith(root.name)


CALLED = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "IBuilderConfig": "set_flag clear_flag set_memory_pool_limit add_optimization_profile create_timing_cache "
    "set_timing_cache get_timing_cache builder_optimization_level profiling_verbosity progress_monitor",
    "INetworkDefinition": "num_inputs get_input num_layers get_layer",
    "ITensor": "is_shape_tensor name dtype",
    "IOptimizationProfile": "set_shape",
    "OnnxParser": "parse num_errors get_error",
    "ParserError": "node desc node_name node_operator",
    "IProgressMonitor": "phase_start step_complete phase_finish",
    "ITimingCache": "serialize",
    "IPluginRegistry": "load_library all_creators",
    "Runtime": "deserialize_cuda_engine",
    "EngineInspector": "get_engine_information",
    "BuilderFlag": "TF32",
    "MemoryPoolType": "WORKSPACE",
    "ProfilingVerbosity": "DETAILED",
    "LayerInformationFormat": "JSON",
    # what Polygraphy's runner and benchmarks/engine_timing.py call
    "ICudaEngine": "create_engine_inspector create_execution_context num_io_tensors get_tensor_name get_tensor_mode "
    "get_tensor_dtype get_tensor_shape get_tensor_format is_shape_inference_io",
    "IExecutionContext": "get_tensor_shape set_input_shape get_tensor_address set_tensor_address set_output_allocator "
    "execute_async_v3",
    "TensorIOMode": "INPUT OUTPUT",
}


@complete
def test_what_is_called_exists_in_the_real_bindings(root):
    code = """
import json, sys
from msconv_deploy.runtimes.tensorrt.bindings import import_bindings
trt = import_bindings()
print(json.dumps([f"{k}.{n}" for k, names in json.loads(sys.argv[1]).items() for n in names.split()
                  if not hasattr(getattr(trt, k, None), n)]))
"""
    status, out, err = in_process(root, code, json.dumps(CALLED))
    assert status == 0, err
    assert json.loads(out) == []


CREATOR = """
#include "NvInferRuntime.h"
using namespace nvinfer1;
class Creator : public IPluginCreatorV3One {
  public:
    char const* getPluginName() const noexcept override { return "MSConv2d"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    char const* getPluginNamespace() const noexcept override { return ""; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields; }
    IPluginV3* createPlugin(char const*, PluginFieldCollection const*, TensorRTPhase) noexcept override { return nullptr; }
  private:
    PluginFieldCollection fields{0, nullptr};
};
#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static Creator creator;
    static IPluginCreatorInterface* const all[] = {&creator};
    count = 1;
    return all;
}
EXPORTED void setLoggerFinder(ILoggerFinder*) {}
"""


def compiled_creator(folder, major):
    """A library with a creator and no plugin, or the reason why there is none."""
    headers = sorted((places.CACHE / "tensorrt-headers").expanduser().glob(f"{major}.*/include"), reverse=True)
    folders = [Path("/usr/local/cuda/include"), *(p / "nvidia/cu13/include" for p in places.site_packages())]
    cuda = [p for p in folders if (p / "cuda_runtime_api.h").is_file()]
    if not (headers and cuda and shutil.which("g++")):
        pytest.skip(f"needs g++, CUDA's headers, and TensorRT's of version {major} in ~/.cache/msconv-deploy")
    library = folder / f"libmsconv_trt{major}.so"
    (folder / "creator.cpp").write_text(CREATOR)
    options = ["-shared", "-fPIC", "-fvisibility=hidden", "-w", "-I", str(headers[0]), "-I", str(cuda[0])]
    subprocess.run(["g++", *options, str(folder / "creator.cpp"), "-o", str(library)], check=True)
    return library


REGISTRY = """
import json, sys
from pathlib import Path
from msconv_deploy.errors import MsconvError
from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt.bindings import import_bindings
from msconv_deploy.runtimes.tensorrt.plugins import check_creators, find_libraries, load_libraries
from tests.ops.test_lowerings import two_layers
tensorrt = TensorRT(import_bindings(), Gpu("none", (9, 0), (12, 6)))
before = tensorrt.creators(tensorrt.registry())
libraries = load_libraries(tensorrt, [Path(name) for name in sys.argv[2:]])
model = two_layers()[0]
for node in model.graph.node:
    node.attribute.add(name="plugin_version", type=3, s=sys.argv[1].encode())
error = ""
try:
    check_creators(tensorrt, model, Path("m.onnx"), libraries)
except MsconvError as failure:
    error = str(failure)
print("RESULT", json.dumps([before, [library.creators for library in libraries], error]))
"""


def registry_of(root, *arguments):
    status, out, err = in_process(root, REGISTRY, *arguments)
    assert status == 0, err
    return json.loads(out.split("RESULT", 1)[1])


@complete
def test_the_real_registry_without_the_plugin(root):
    before, loaded, error = registry_of(root, "1")
    assert len(before) > 10
    assert loaded == []
    assert f"plugin not found: MSConv2d version 1 (ONNX domain msconv) has no creator in TensorRT {root.name}" in error
    assert "libraries loaded: none" in error


@complete
def test_the_real_registry_with_a_library(root, tmp_path):
    library = compiled_creator(tmp_path, root.name.split(".")[0])
    before, loaded, error = registry_of(root, "1", library)
    assert ["MSConv2d", "1", ""] not in before
    assert loaded == [[["MSConv2d", "1", ""]]]
    assert error == ""
    _, _, error = registry_of(root, "2", library)
    assert "plugin not found: MSConv2d version 2" in error
    assert f"{library} holds MSConv2d version 1" in error
    assert "creators: MSConv2d version 1" in error


@complete
def test_the_projects_own_library_in_the_real_registry(root):
    mine = [p for p in PLUGINS if p.name == f"libmsconv_trt{root.name.split('.')[0]}.so"]
    if not mine:
        pytest.skip("not built: make plugin")
    _, loaded, error = registry_of(root, "1", mine[0])
    assert (loaded, error) == ([[["MSConv2d", "1", ""]]], "")


@complete
@pytest.mark.skipif(bool(gpu.probe()[0]), reason="this machine has a GPU")
@pytest.mark.parametrize("verb", ["build", "inspect", "validate"])
def test_without_a_gpu_the_real_tensorrt_is_exit_3_and_no_crash(root, tmp_path, verb):
    from msconv_deploy.model_files import write_model
    from msconv_deploy.ops.forms import Form, convert_form

    model = tmp_path / "m.onnx"
    write_model(convert_form(two_layers()[0], Form.FUSED), model)
    (tmp_path / "m.plan").write_bytes(b"plan")
    arguments = {
        "build": ["engine", "build", model, "-o", tmp_path / "new.plan"],
        "inspect": ["engine", "inspect", tmp_path / "m.plan"],
        "validate": ["validate", model, "--reference", model, "--runtimes", "ort,trt", "--no-rtx"],
    }[verb]
    code = "import sys\nfrom msconv_deploy.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    status, out, err = in_process(root, code, *arguments)
    assert status == 3, (status, out, err)
    assert "no NVIDIA GPU: " in err
    assert "no package tensorrt" not in err
    assert not (tmp_path / "new.plan").exists()
