"""The compiled library: what it exports and needs, and that real TensorRT registries take it. Needs nvcc, not a GPU.

It is compiled for one architecture with `msconv plugin build`'s own code, for every major version whose headers are there.
Registries: TensorRT's lean runtime from PyPI, and complete ones that were unpacked into the cache folder. Neither a builder
nor a runtime is made: without a GPU these crash.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from msconv_deploy.errors import NotAvailableError
from msconv_deploy.plugin.build import build_plugin, library_name, sources_sha256
from msconv_deploy.plugin.check import LEAN, check_library, installed_registries
from msconv_deploy.plugin.headers import find_headers
from msconv_deploy.plugin.toolkit import find_toolkit
from msconv_deploy.runtimes.places import CACHE
from tests.plugins.plugin_object import BUILD, DECLARATION, ROOT

MAJORS = (11, 10, 8)
ENTRY_POINT = {11: "getCreators", 10: "getCreators", 8: "getPluginCreators"}
COMPLETE = ("10.6.0", "11.2.1")
every_major = pytest.mark.parametrize("major", MAJORS)


def built(major):
    """The library for a major version; skips the test where it cannot be compiled."""
    try:
        find_toolkit()
        find_headers(str(major))
    except NotAvailableError as error:
        pytest.skip(str(error))
    output = BUILD / "library" / library_name(major)
    report = build_plugin(
        output=output, tensorrt=str(major), architectures=["90"], jobs=2, source=ROOT / "plugins", force=True
    )
    assert report.tensorrt_version.split(".")[0] == str(major)
    return output


def output_of(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (binutils) is not installed")
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@every_major
def test_only_the_entry_points_are_exported(major):
    exported = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", built(major)).splitlines()]
    assert sorted(exported) == sorted([ENTRY_POINT[major], "setLoggerFinder"])


@every_major
def test_it_needs_neither_tensorrt_nor_cuda_to_load(major):
    dynamic = output_of("readelf", "-d", built(major))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    assert all(re.match(r"(libc|libm|libdl|libpthread|librt|ld-linux[^.]*)\.so", name) for name in needed), needed
    assert "NODELETE" in dynamic


@every_major
def test_the_sidecar_says_what_it_was_made_of(major):
    library = built(major)
    sidecar = json.loads(library.with_suffix(".json").read_text())
    assert sidecar["architectures"] == ["90"]
    assert sidecar["library_bytes"] == library.stat().st_size
    assert sidecar["sources_sha256"] == sources_sha256(ROOT / "plugins")
    assert re.fullmatch(r"\d+\.\d+", sidecar["nvcc_version"])


def assert_is_declared(library):
    (creator,) = library.creators
    assert (creator.name, creator.version, creator.namespace) == tuple(
        DECLARATION[key] for key in ("name", "version", "namespace")
    )
    assert creator.interface == "IPluginCreatorV3One"
    expected = [(a["name"], a["type"], a["length"]) for a in DECLARATION["attributes"]]
    assert [(f.name, f.type, f.length) for f in creator.fields] == expected


@pytest.mark.skipif(LEAN not in installed_registries(), reason="no lean TensorRT: pip install 'msconv-deploy[lean]'")
def test_the_lean_registry_takes_it(monkeypatch):
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    checked = check_library(built(11))
    assert checked.registry.startswith((LEAN, "tensorrt 11"))
    assert_is_declared(checked)


@pytest.fixture(params=COMPLETE)
def complete(request, monkeypatch):
    """Root of a complete TensorRT, made the one in use."""
    root = CACHE.expanduser() / "tensorrt" / request.param
    if not (root / "lib" / "libnvinfer.so").exists():
        pytest.skip(f"there is no complete TensorRT {request.param} in {root}")
    monkeypatch.setenv("TENSORRT_ROOT", str(root))
    return root


def test_complete_registries_take_it(complete):
    major = int(complete.name.split(".")[0])
    checked = check_library(built(major))
    assert checked.registry == f"tensorrt {complete.name}" or checked.registry.startswith(f"tensorrt {complete.name}.")
    assert_is_declared(checked)


# Open the library as Triton, ONNX Runtime and LD_PRELOAD-like hosts do; then load, unload and load it through the registry.
OPEN = """
import ctypes, json, sys
import numpy as np
{bindings}
registry = trt.get_plugin_registry()
names = lambda: [c.name for c in registry.all_creators].count("MSConv2d")
seen = [names()]
ctypes.CDLL(sys.argv[1]); seen.append(names())
handle = registry.load_library(sys.argv[1]); seen.append(names())
registry.deregister_library(handle); seen.append(names())
registry.load_library(sys.argv[1]); seen.append(names())
creator = registry.get_creator("MSConv2d", "1", "")
make = lambda pads: creator.create_plugin("first", trt.PluginFieldCollection([
    trt.PluginField(name, np.array(values, np.int32), trt.PluginFieldType.INT32)
    for name, values in (("sources", [1, 0, 0, 1]), ("kernel_shape", [3, 3]), ("pads", pads))]), trt.TensorRTPhase.BUILD)
good, bad = make([1, 1, 1, 1]), make([1, 1, -1, 1])
print(json.dumps([seen, good is not None, bad is None]))
"""
BINDINGS = "from msconv_deploy.runtimes.tensorrt.bindings import import_bindings\ntrt = import_bindings()"


def open_in(bindings, library):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN.format(bindings=bindings), str(library)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen, good, bad = json.loads(done.stdout.splitlines()[-1])
    assert seen == [0, 1, 1, 0, 1]  # before, opened, loaded, unloaded, loaded again
    assert good
    assert bad
    assert "MSConv2d 'first': pads must be" in done.stderr


@pytest.mark.skipif(LEAN not in installed_registries(), reason="no lean TensorRT: pip install 'msconv-deploy[lean]'")
def test_a_host_that_only_opens_it_finds_it_registered():
    open_in("import tensorrt_lean_bindings as trt", built(11))


def test_a_complete_host_that_only_opens_it_finds_it_registered(complete):
    open_in(BINDINGS, built(int(complete.name.split(".")[0])))


def test_opened_without_tensorrt_it_does_nothing():
    program = "import ctypes, sys; print(hasattr(ctypes.CDLL(sys.argv[1]), 'getCreators'))"
    done = subprocess.run([sys.executable, "-c", program, str(built(11))], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")
