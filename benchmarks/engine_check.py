"""TensorRT engines on a GPU: do they compute what ONNX Runtime computes, in the graph's precision, and how fast?

    python benchmarks/engine_check.py [--models build/export/raw_denoiser] [--zoo ../shared/zoo] [--output DIR]

Needs a GPU, TensorRT with its Python package (TENSORRT_ROOT), the plugin library and the exported files; no network. For
the reference model as tile-concat-conv, in portable and in plugin form, in fp32 and fp16, with dynamic shapes:

- the engine is built, its precision and the plugin's layers are read back from the inspector;
- ONNX Runtime on the CPU in fp32 is the reference for ONNX Runtime, the engine and, where torch is installed, the module,
  at several sizes, through Polygraphy;
- the plan is loaded and run in a new process, whose answers must be those of this one;
- it is timed with and without CUDA graphs;
- the plugin form runs through ONNX Runtime's TensorRT provider, where there is one.

Files of the zoo, where they are, are built and compared as they are. Writes engines_<gpu>.json and .md. Exit code 0 if all
agrees, 1 if something differs, 3 if something needed is missing (said before anything is built), 4 if a build fails.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions, in_words  # noqa: E402
from msconv_deploy.errors import BadInputError, ExitCode, MsconvError, NotAvailableError  # noqa: E402
from msconv_deploy.files import write_text  # noqa: E402
from msconv_deploy.model_files import read_model, serialized, write_model  # noqa: E402
from msconv_deploy.ops.configuration import DOMAIN, MSConv2dConfig, PaddingMode  # noqa: E402
from msconv_deploy.ops.forms import Form, msconv_nodes  # noqa: E402
from msconv_deploy.ops.schema import configuration_of_node  # noqa: E402
from msconv_deploy.runtimes.settings import Settings  # noqa: E402
from msconv_deploy.runtimes.tensorrt.api import TensorRT  # noqa: E402
from msconv_deploy.runtimes.tensorrt.bindings import require  # noqa: E402
from msconv_deploy.runtimes.tensorrt.engine import EngineRequest, build_engine, load_plan, read_source  # noqa: E402
from msconv_deploy.runtimes.tensorrt.plugins import find_libraries  # noqa: E402
from msconv_deploy.runtimes.tensorrt.profiles import parse_all_shapes  # noqa: E402
from msconv_deploy.validation import InputOptions, ValidationOptions  # noqa: E402
from msconv_deploy.validation.difference import difference  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
RECIPE = ROOT / "export" / "raw_denoiser.toml"
PRECISIONS = ("fp32", "fp16")
VARIANTS = ("tile-concat-conv", "portable", "plugin")
SHAPES = ("nchw:1x4x4x4:1x4x540x960:2x4x1088x1920",)
SIZES: tuple[dict[str, int], ...] = ({"N": 1, "H": 64, "W": 96}, {"N": 2, "H": 37, "W": 53}, {"N": 1, "H": 5, "W": 4})
TIMED = ({"N": 1, "H": 540, "W": 960}, {"N": 1, "H": 1080, "W": 1920})
ZOO_FILES = ("dinv_ffdnet_scalar.dy18_st.onnx", "coordconv_uber.dy18_st.onnx", "bicyclegan_unet.dy18_dyn.onnx")


# -- tile-concat-conv ------------------------------------------------------------------------------------------------


def tile_concat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The plugin form with every MSConv2d node spelled as it was before: expand, concatenate, convolve.

    A ``source`` vector's weight goes on the tap that lies inside the image at every output, zeros elsewhere
    (docs/spec.md, conversions).

    Raises:
        BadInputError: a node is not of that kind (other padding semantics or mode, groups, no image, an activation).
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        nodes += _tiled(node, weights, made.graph) if node.domain == DOMAIN else [node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    kept = [entry for entry in made.opset_import if entry.domain != DOMAIN]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    return made


def _tiled(node: onnx.NodeProto, weights: dict[str, np.ndarray], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    config = configuration_of_node(node)
    plain = config.group == 1 and config.activation == 0 and config.padding_mode == PaddingMode.ZEROS
    if not plain or config.tiled or not config.sources[0]:
        raise BadInputError(f"node {node.name}: is not spelled as tile-concat-conv by this script: {config}")
    names, own = config.source_names, f"{node.name}_tiled"
    made: list[onnx.NodeProto] = []

    def constant(name: str, array: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), f"{own}_{name}"))
        return f"{own}_{name}"

    def add(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, inputs, [f"{own}_{name}"], f"{own}_{name}", **attributes))
        return f"{own}_{name}"

    image = node.input[0]
    shape = add("Shape", [image], "shape")
    batch = add("Gather", [shape, constant("zero", np.array([0], np.int64))], "batch")
    extents = add("Gather", [shape, constant("axes", np.array([2, 3], np.int64))], "extents")
    tiled, kernels = [image], [weights[node.input[len(names)]]]
    for position, name in enumerate(names[1:], 1):
        kernel = weights[node.input[len(names) + position]]
        axes = {"nch": [3], "ncw": [2], "nc": [2, 3]}[name]
        lifted = add(
            "Unsqueeze", [node.input[position], constant(f"{name}_axes", np.array(axes, np.int64))], f"{name}_lifted"
        )
        channels = constant(f"{name}_channels", np.array([kernel.shape[1]], np.int64))
        tiled.append(add("Expand", [lifted, add("Concat", [batch, channels, extents], f"{name}_shape", axis=0)], name))
        kernels.append(_on_one_tap(config, kernel, axes))
    inputs = [add("Concat", tiled, "concat", axis=1), constant("weight", np.concatenate(kernels, 1))]
    attributes = {name: list(getattr(config, name)) for name in ("kernel_shape", "strides", "dilations", "pads")}
    made.append(helper.make_node("Conv", [*inputs, *node.input[2 * len(names) :]], [node.output[0]], own, **attributes))
    return made


def _on_one_tap(config: MSConv2dConfig, kernel: np.ndarray, axes: list[int]) -> np.ndarray:
    """The weight of a vector as one of the tiled tensor ``[O, C, kh, kw]``; ``axes`` are those that the vector lacks."""
    wide = np.zeros((*kernel.shape[:2], *config.kernel_shape), kernel.dtype)
    place: list[Any] = [slice(None)] * 4
    for axis in axes:
        before, after = config.pads[axis - 2], config.pads[axis]
        dilation, extent = config.dilations[axis - 2], config.kernel_shape[axis - 2]
        if before % dilation or before + after > dilation * (extent - 1):
            raise BadInputError(f"no tap lies inside the image at every output: {config}")
        place[axis] = before // dilation
    wide[tuple(place)] = kernel
    return wide


# -- checks ----------------------------------------------------------------------------------------------------------


class Check:
    """All that is needed, found at once; what is missing is said at once.

    Raises:
        NotAvailableError: a GPU, TensorRT, the plugin library or exported files are missing.
    """

    def __init__(self, models: Path, zoo: Path, work: Path) -> None:
        missing = []
        self.work, self.zoo = work, [zoo / name for name in ZOO_FILES if (zoo / name).is_file()]
        self.files = {p: models / f"raw_denoiser.fused.{p}.onnx" for p in PRECISIONS}
        self.plugin_files = {p: models / f"raw_denoiser.plugin.{p}.onnx" for p in PRECISIONS}
        portable = [self._portable(path) for path in self.files.values()]
        for path in (*self.files.values(), *portable, *self.plugin_files.values()):
            if not path.is_file():
                missing.append(f"no {path}: make export")
        self.tensorrt: TensorRT
        self.libraries: list[Path] = []
        try:
            self.tensorrt = require()
            self.libraries = find_libraries(self.tensorrt.major)
            if not self.libraries:
                major = self.tensorrt.major
                missing.append(f"no build/plugins/libmsconv_trt{major}.so: msconv plugin build --tensorrt {major}")
        except NotAvailableError as error:
            missing.append(str(error))
            if not find_libraries(10) and not find_libraries(11):
                missing.append("no plugin library in build/plugins or MSCONV_PLUGIN_PATH: make plugin")
        if missing:
            raise NotAvailableError("this check needs what is not here:" + "".join(f"\n- {what}" for what in missing))

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        when, engines = conditions(), []
        for precision in PRECISIONS:
            for variant in VARIANTS:
                say(f"{variant} {precision}")
                engines.append(self.engine(variant, precision))
        zoo = []
        for path in self.zoo:
            say(path.name)
            zoo.append({"model": path.name} | self.agreement(path, path, ["trt"], sizes=()))
        say("ONNX Runtime's TensorRT provider")
        return {
            "gpu": self.tensorrt.gpu.name,
            "compute_capability": self.tensorrt.gpu.capability_text,
            "driver_cuda": ".".join(map(str, self.tensorrt.gpu.cuda)),
            "tensorrt": self.tensorrt.version,
            "conditions": when,
            "shapes": list(SHAPES),
            "engines": engines,
            "zoo": zoo,
            "module": self.module(),
            "onnxruntime_provider": self.provider(),
        }

    def engine(self, variant: str, precision: str) -> dict[str, Any]:
        """Build, read back, compare, load anew, time."""
        model = self.files[precision]
        if variant == "tile-concat-conv":
            model = self.work / f"tile_concat.{precision}.onnx"
            write_model(tile_concat(onnx.load(self.plugin_files[precision])), model, force=True)
        form = Form.PLUGIN if variant == "plugin" else Form.PORTABLE
        plan = self.work / f"{variant}.{precision}.plan"
        request = EngineRequest(form=form, shapes=parse_all_shapes(SHAPES), cache=self.work / "cache")
        report = build_engine(read_source(model, request), plan, self.tensorrt)
        check = report.precision_check
        return {
            "variant": variant,
            "precision": precision,
            "plan_bytes": report.plan_bytes,
            "build_seconds": report.timings["build"],
            "layers": len(report.layers),
            "precision_check": check.model_dump(),
            "agreement": self.agreement(self._runnable(model, form), self.files["fp32"], ["ort", "trt"], SIZES),
            "new_process": self.in_new_process(plan, precision),
            "times": self.times(plan, precision),
        }

    def _runnable(self, model: Path, form: Form) -> Path:
        """The file for `validate`: the fused one is built in plugin form, because a library is there."""
        if form == Form.PLUGIN or model not in self.files.values():
            return model
        return self._portable(model)

    @staticmethod
    def _portable(fused: Path) -> Path:
        return fused.with_name(fused.name.replace(".fused.", ".portable."))

    def agreement(
        self, model: Path, reference: Path, runtimes: list[str], sizes: tuple[dict[str, int], ...]
    ) -> dict[str, Any]:
        """ONNX Runtime on the CPU without optimizations against the named runtimes, through Polygraphy."""
        from msconv_deploy.validation import validate_onnx_against_onnx

        options = ValidationOptions(runtimes=runtimes, inputs=InputOptions(sizes=list(sizes)), settings=Settings())
        return _summary(validate_onnx_against_onnx(model, reference, options))

    def module(self) -> dict[str, Any]:
        """The PyTorch module in float64 against itself in fp32, ONNX Runtime and the engine."""
        try:
            from msconv_deploy.exporting import load_model, load_recipe
        except ModuleNotFoundError as error:
            return {"verdict": "not run", "reason": f"{error.name} is not installed"}
        from msconv_deploy.validation import validate_onnx_against_module

        recipe = load_recipe(RECIPE)
        options = ValidationOptions(
            runtimes=["torch", "ort", "trt"], inputs=InputOptions(sizes=list(SIZES)), settings=Settings()
        )
        report = validate_onnx_against_module(
            self.files["fp32"],
            load_model(recipe, "fp32"),
            options,
            input_names=list(recipe.inputs),
            output_names=list(recipe.export.outputs),
        )
        return _summary(report)

    def in_new_process(self, plan: Path, precision: str) -> dict[str, Any]:
        """The plan's answers in a process that did not build it, against those in this one."""
        inputs = _inputs(SIZES[0], precision)
        np.savez(self.work / "inputs.npz", **inputs)  # type: ignore[arg-type]
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--run",
            str(plan),
            str(self.work / "inputs.npz"),
            str(self.work / "out.npz"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            return {"verdict": "differ", "reason": f"the new process exited with {done.returncode}: {last[0]}"}
        here = run_plan(self.tensorrt, plan, inputs)
        with np.load(self.work / "out.npz") as there:
            found = {name: difference(there[name], here[name]).value for name in here}
        same = max(found.values()) == 0
        return {"verdict": "passed" if same else "differ", "difference": found}

    def times(self, plan: Path, precision: str) -> list[dict[str, Any]]:
        from benchmarks.engine_timing import time_engine

        engine = load_plan(plan, self.tensorrt)
        return [{"size": size} | time_engine(engine, _inputs(size, precision)) for size in TIMED]

    def provider(self) -> dict[str, Any]:
        """The plugin form in ONNX Runtime's TensorRT provider, which looks for plugins in a domain of its own."""
        import onnxruntime

        if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
            return {"verdict": "not run", "reason": "this ONNX Runtime has no TensorRT provider (onnxruntime-gpu has)"}
        model = read_model(self.plugin_files["fp32"])
        for node in msconv_nodes(model):
            node.domain = "trt.plugins"
        model.opset_import.append(helper.make_opsetid("trt.plugins", 1))
        path = self.work / "provider.onnx"
        path.write_bytes(serialized(model, self.plugin_files["fp32"].parent))
        options = {"trt_extra_plugin_lib_paths": ";".join(str(p.resolve()) for p in self.libraries)}
        inputs = _inputs(SIZES[0], "fp32")
        try:
            session = onnxruntime.InferenceSession(str(path), providers=[("TensorrtExecutionProvider", options)])
        except Exception as error:  # its exception classes have no common base; another TensorRT version is one reason
            return {"verdict": "not run", "reason": str(error).strip().splitlines()[0]}
        try:
            actual = session.run(None, inputs)[0]
        except Exception as error:
            return {"verdict": "differ", "reason": str(error).strip().splitlines()[0]}
        plain = onnxruntime.InferenceSession(str(self.files["fp32"]), providers=["CPUExecutionProvider"])
        amount = difference(actual, plain.run(None, inputs)[0]).value
        # TF32 is on in this provider and cannot be switched off: 10 bits of mantissa, nine convolutions deep.
        return {"verdict": "passed" if amount <= 1e-2 else "differ", "difference": amount}


def _summary(report: Any) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "largest_difference": report.largest_difference,
        "notes": report.notes,
    }


def _inputs(size: dict[str, int], precision: str) -> dict[str, np.ndarray]:
    """Inputs of the reference model at a size, seeded."""
    rng = np.random.default_rng(7)
    n, h, w = size["N"], size["H"], size["W"]
    shapes = {"nchw": (n, 4, h, w), "nch": (n, 2, h), "ncw": (n, 2, w), "nc": (n, 4)}
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def run_plan(tensorrt: TensorRT, plan: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a plan, through Polygraphy's runner."""
    from polygraphy.backend.trt import TrtRunner

    from msconv_deploy.runtimes.tensorrt.runner import check_available

    check_available()  # also lets Polygraphy find CUDA's runtime
    with TrtRunner(load_plan(plan, tensorrt)) as runner:
        return {name: np.array(value) for name, value in runner.infer(inputs).items()}


# -- results ---------------------------------------------------------------------------------------------------------


def verdict(results: dict[str, Any]) -> ExitCode:
    """0 only if everything that ran agrees and every precision is as asked."""
    parts = ("precision_check", "agreement", "new_process")
    found = [engine[part]["verdict"] for engine in results["engines"] for part in parts]
    found += [row["verdict"] for row in (*results["zoo"], results["module"], results["onnxruntime_provider"])]
    if "differ" in found:
        return ExitCode.OUTPUTS_DIFFER
    return ExitCode.NOT_AVAILABLE if "unverified" in found else ExitCode.OK


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    lines = [
        f"# Engines on {results['gpu']}",
        "",
        f"TensorRT {results['tensorrt']}, compute capability {results['compute_capability']}, driver for CUDA "
        f"{results['driver_cuda']}. Made by `make engine-check`. Differences are max|a-b| / max|b| against ONNX Runtime on "
        "the CPU in fp32. Times are microseconds, median, inputs on the device."
        + (f" {in_words(results['conditions'])}" if "conditions" in results else ""),
        "",
        "| engine | layers | plugin layers | precision | agreement | largest difference | new process |",
        "|---|---|---|---|---|---|---|",
    ]
    for engine in results["engines"]:
        check, agreement = engine["precision_check"], engine["agreement"]
        lines.append(
            f"| {engine['variant']} {engine['precision']} | {engine['layers']} | {check['plugin_layers']} of "
            f"{check['plugin_nodes']} | {check['verdict']} | {agreement['verdict']} | "
            f"{_number(agreement['largest_difference'].get('trt'))} | {engine['new_process']['verdict']} |"
        )
    lines += ["", "| engine | size | enqueued | CUDA graph |", "|---|---|---|---|"]
    for engine in results["engines"]:
        for row in engine["times"]:
            graph = row.get("graph_us", row.get("graph_error"))
            size = "x".join(map(str, row["size"].values()))
            lines.append(f"| {engine['variant']} {engine['precision']} | {size} | {row['plain_us']} | {graph} |")
    lines += ["", "| also | verdict | largest difference | |", "|---|---|---|---|"]
    others = [(row["model"], row) for row in results["zoo"]]
    others += [
        ("PyTorch module", results["module"]),
        ("ONNX Runtime's TensorRT provider", results["onnxruntime_provider"]),
    ]
    for name, row in others:
        amount = row.get("difference", row.get("largest_difference", {}).get("trt"))
        lines.append(f"| {name} | {row['verdict']} | {_number(amount)} | {row.get('reason', '')} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def file_stem(gpu: str) -> str:
    """``NVIDIA H200`` -> ``engines_nvidia_h200``."""
    return "engines_" + re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "export" / "raw_denoiser")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--run", nargs=3, type=Path, metavar=("PLAN", "IN.npz", "OUT.npz"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.run:
            plan, source, target = options.run
            with np.load(source) as given:
                inputs = {name: given[name] for name in given.files}
            np.savez(target, **run_plan(require(), plan, inputs))  # type: ignore[arg-type]
            return int(ExitCode.OK)
        with tempfile.TemporaryDirectory() as folder:
            results = Check(options.models, options.zoo, Path(folder)).run(lambda step: print(step, flush=True))
    except MsconvError as error:
        print(f"engine_check: {error}", file=sys.stderr)
        return int(error.exit_code)
    path = options.output / f"{file_stem(results['gpu'])}.json"
    write_text(path, json.dumps(results, indent=1) + "\n", force=True)
    write_text(path.with_suffix(".md"), markdown(results), force=True)
    print(markdown(results))
    return int(verdict(results))


if __name__ == "__main__":
    sys.exit(main())
