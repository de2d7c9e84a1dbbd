"""``msconv engine build`` without the command line: form, plugins, shapes, cache, build, read-back, sidecar."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from msconv_deploy.errors import BadInputError, MsconvError, OutputsDifferError
from msconv_deploy.files import atomic_write, check_writable, sha256_of, write_bytes
from msconv_deploy.model_files import read_model, serialized
from msconv_deploy.ops.forms import Form, convert_form, form_of
from msconv_deploy.ops.symbolic import Dim
from msconv_deploy.reporting.engine import EngineInspectReport, EnginePlugin, EngineReport, PrecisionCheck
from msconv_deploy.runtimes.places import CACHE
from msconv_deploy.runtimes.tensorrt.api import ProgressCallback, TensorRT
from msconv_deploy.runtimes.tensorrt.build import BuildOptions, Built, NetworkSource, build_plan, graph_precision
from msconv_deploy.runtimes.tensorrt.inspect import check_precision, contractions, precisions, read_layers
from msconv_deploy.runtimes.tensorrt.key import Key, differences, digest, engine_key, model_sha256
from msconv_deploy.runtimes.tensorrt.plugins import check_creators, find_libraries, load_libraries
from msconv_deploy.runtimes.tensorrt.profiles import Profile, complete_profile

logger = logging.getLogger(__name__)

ENGINE_CACHE = CACHE / "engines"


@dataclass(frozen=True)
class EngineRequest:
    """What to build.

    Attributes:
        form: the form that TensorRT gets; None: a fused model in plugin form where a plugin library is found, else in
            portable form; any other model as it is.
        shapes: of dynamic inputs, as far as the user gave them; see :mod:`.profiles`.
        plugins: plugin libraries beside those that are found.
        cache: folder of finished plans and timing caches; None: no cache.
        timing_cache: file; None: one in the cache folder, if there is one.
    """

    form: Form | None = None
    shapes: Profile = field(default_factory=dict)
    plugins: Sequence[Path] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    cache: Path | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class EngineSource:
    """A model that has been read, and what was asked for it. Nothing of TensorRT was needed so far."""

    path: Path
    model: onnx.ModelProto
    sha256: str
    form: Form
    profile: Profile
    request: EngineRequest


@dataclass(frozen=True)
class Plan:
    """A serialized engine and how it was made."""

    content: bytes
    report: EngineReport


def read_source(path: Path, request: EngineRequest | None = None) -> EngineSource:
    """Read a model and complete the shapes of its inputs.

    Raises:
        BadInputError: the file is missing or no model, it has not the wanted form, or shapes are wrong.
    """
    request = request or EngineRequest()
    model = read_model(path)
    form = form_of(model)
    if request.form == Form.FUSED:
        raise BadInputError("TensorRT takes the plugin or the portable form; leave --form out to have it chosen")
    if request.form == Form.PLUGIN and form == Form.PORTABLE:
        convert_form(model, Form.PLUGIN)  # says why that is not possible
    profile = complete_profile(_input_dims(model), request.shapes)
    return EngineSource(path, model, model_sha256(model, path), form, profile, request)


def _input_dims(model: onnx.ModelProto) -> dict[str, list[Dim]]:
    """Graph inputs that are no initializers: their dimensions; one without a name is named after its place."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}[{axis}]"
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        ]
        for value in model.graph.input
        if value.name not in weights
    }


def build_engine(
    source: EngineSource,
    output: Path,
    tensorrt: TensorRT,
    *,
    force: bool = False,
    keep_failed: bool = False,
    progress: ProgressCallback | None = None,
    read_back: bool = True,
) -> EngineReport:
    """Build a plan, or take it from the cache, and write it with its sidecar.

    Args:
        keep_failed: keep a plan whose precision is not the graph's, as ``<name>.failed<suffix>``.
        read_back: load the plan and compare its precision with the graph's. Needs the GPU; only tests leave it out.

    Raises:
        BadInputError: the output exists and is of something else; every part that differs is named.
        NotAvailableError: a plugin is missing.
        BuildFailedError: TensorRT refused the model.
        OutputsDifferError: the engine does not compute in the graph's types; no plan is written.
    """
    work = _Work(source, tensorrt, read_back)
    if (present := _present(output, work.key, force)) is not None:
        return present.model_copy(update={"source": "up to date"})
    check_writable(sidecar_of(output), force)
    plan = work.plan(progress)
    report = plan.report.model_copy(update={"plan": str(output)})
    if report.precision_check.verdict == "differ":
        kept = ""
        if keep_failed:
            failed = output.with_suffix(f".failed{output.suffix}")
            write_bytes(failed, plan.content, force)
            kept = f"\nKept as {failed}"
        raise OutputsDifferError(f"{source.path}: {report.precision_check.reason}{kept}")
    _write(output, plan.content, report, force)
    return report


def make_plan(source: EngineSource, tensorrt: TensorRT, progress: ProgressCallback | None = None) -> Plan:
    """A plan in memory, from the cache or built.

    Raises:
        NotAvailableError: a plugin is missing.
        BuildFailedError: TensorRT refused the model.
    """
    return _Work(source, tensorrt, read_back=True).plan(progress)


class _Work:
    """One model on one device: what TensorRT gets, and the key of the plan."""

    def __init__(self, source: EngineSource, tensorrt: TensorRT, read_back: bool) -> None:
        self.source, self.tensorrt, self.read_back = source, tensorrt, read_back
        request = source.request
        libraries = find_libraries(tensorrt.major, request.plugins)
        self.form = request.form or _default_form(source.form, bool(libraries))
        self.model = source.model if self.form == source.form else convert_form(source.model, self.form)
        self.libraries: list[Path] = []
        if self.form == Form.PLUGIN or request.plugins:
            loaded = load_libraries(tensorrt, libraries)
            check_creators(tensorrt, self.model, source.path, loaded)
            self.libraries = libraries
        self.key: Key = engine_key(
            tensorrt, source.sha256, self.form.value, self.libraries, source.profile, request.options
        )

    def plan(self, progress: ProgressCallback | None) -> Plan:
        """From the cache, else built; what was built goes into the cache if its precision is right."""
        cache = self.source.request.cache
        if cache is not None:
            cache = cache.expanduser()
            if (found := _cached(cache, self.key)) is not None:
                report = found.report.model_copy(update={"source": "cache", "model": str(self.source.path)})
                return Plan(found.content, report)
            if reason := _nearest(cache, self.key, self.source.path):
                logger.info("%s: not in the cache: %s", self.source.path, reason)
        plan = self._build(progress, cache)
        if cache is not None and plan.report.precision_check.verdict != "differ":
            _store(cache, self.key, plan)
        return plan

    def _build(self, progress: ProgressCallback | None, cache: Path | None) -> Plan:
        tensorrt, source = self.tensorrt, self.source
        timing_cache = source.request.timing_cache
        if timing_cache is None and cache is not None:
            timing_cache = cache / f"{tensorrt.name}-sm{tensorrt.gpu.capability_text}.timing".replace(" ", "-")
        network = NetworkSource(source.path, serialized(self.model, source.path.parent), graph_precision(self.model))
        built = build_plan(tensorrt, network, source.profile, source.request.options, timing_cache, progress)
        report = self._report(built, network.precision)
        if self.read_back:
            start = time.perf_counter()
            engine = tensorrt.deserialize(built.plan)
            if engine is None:
                raise tensorrt.failed(f"built {source.path}, but cannot load the plan")
            report.layers = read_layers(tensorrt.layer_information(engine))
            wanted = contractions(self.model)
            report.precision_check = check_precision(wanted, report.layers, source.request.options.tf32)
            report.timings["inspect"] = round(time.perf_counter() - start, 3)
        return Plan(built.plan, report)

    def _report(self, built: Built, precision: str) -> EngineReport:
        source, tensorrt = self.source, self.tensorrt
        return EngineReport(
            model=str(source.path),
            model_sha256=source.sha256,
            model_form=source.form.value,
            form=self.form.value,
            plan="",
            plan_sha256=hashlib.sha256(built.plan).hexdigest(),
            plan_bytes=len(built.plan),
            key=self.key,
            tensorrt_version=tensorrt.version,
            gpu=tensorrt.gpu.name,
            compute_capability=tensorrt.gpu.capability_text,
            plugins=[EnginePlugin(path=str(path), sha256=sha256_of(path)) for path in self.libraries],
            precision=precision,
            profile={name: [list(shape) for shape in shapes] for name, shapes in source.profile.items()},
            precision_check=PrecisionCheck(verdict="unverified", reason="the plan was not read back"),
            timing_cache=built.timing_cache,
            warnings=built.warnings,
            timings=dict(built.timings),
        )


def _default_form(present: Form, plugin_found: bool) -> Form:
    if present != Form.FUSED:
        return present
    return Form.PLUGIN if plugin_found else Form.PORTABLE


# -- files -----------------------------------------------------------------------------------------------------------


def sidecar_of(plan: Path) -> Path:
    """``model.plan`` -> ``model.plan.json``: ``model.json`` belongs to the ONNX file."""
    return plan.with_name(f"{plan.name}.json")


def read_sidecar(plan: Path) -> EngineReport | None:
    """The sidecar of a plan, or None if it has none.

    Raises:
        BadInputError: it is there, but is not one.
    """
    path = sidecar_of(plan)
    if not path.is_file():
        return None
    try:
        return EngineReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInputError(
            f"{path}: is not the sidecar of a plan, or of another version of this program "
            f"({error.error_count()} fields are wrong); remove it, or build the plan again"
        ) from None


def read_plan(path: Path) -> tuple[bytes, EngineReport | None]:
    """A plan and its sidecar.

    Raises:
        BadInputError: there is no such file, it is empty, or it is not what the sidecar describes.
    """
    if not path.is_file():
        raise BadInputError(f"{path}: {'is a folder; name a plan' if path.is_dir() else 'no such file'}")
    content, report = path.read_bytes(), read_sidecar(path)
    if not content:
        raise BadInputError(f"{path}: is empty; build it again: msconv engine build")
    if report is not None and len(content) != report.plan_bytes:
        what = "truncated" if len(content) < report.plan_bytes else "another file"
        raise BadInputError(
            f"{path}: is {what}: it has {len(content)} bytes, but {sidecar_of(path).name} says {report.plan_bytes}; build "
            "it again: msconv engine build"
        )
    if report is not None and sha256_of(path) != report.plan_sha256:
        raise BadInputError(
            f"{path}: was changed since it was built: its SHA-256 is not the one in {sidecar_of(path).name}; build it "
            "again: msconv engine build"
        )
    return content, report


def check_device(path: Path, report: EngineReport, tensorrt: TensorRT) -> None:
    """Refuse a plan of another TensorRT version or for another compute capability before TensorRT sees it.

    Raises:
        BadInputError: naming the part that differs.
    """
    now = {"TensorRT version": tensorrt.name, "compute capability": tensorrt.gpu.capability_text}
    if wrong := differences({part: report.key.get(part, "unknown") for part in now}, now):
        raise BadInputError(
            f"{path}: this plan does not run here: {'; '.join(wrong)}. Build it again here: msconv engine build "
            f"{report.model} -o {path} --force"
        )


def load_plan(path: Path, tensorrt: TensorRT, plugins: Sequence[Path] = ()) -> Any:
    """The engine of a plan; plugin libraries are loaded first.

    Raises:
        BadInputError: the plan is damaged, or of another version or device.
    """
    content, report = read_plan(path)
    if report is not None:
        check_device(path, report, tensorrt)
    load_libraries(tensorrt, find_libraries(tensorrt.major, plugins))
    tensorrt.messages.clear()
    engine = tensorrt.deserialize(content)
    if engine is None:
        said = "".join(f"\n  {text}" for text in tensorrt.messages.errors or ["no message"])
        raise BadInputError(
            f"{path}: {tensorrt.name} on {tensorrt.gpu.name} does not load this plan:{said}\n"
            "It is damaged, or of another version, another device, or plugin libraries that are not here: build it again"
        )
    return engine


def inspect_plan(
    path: Path,
    tensorrt: TensorRT,
    plugins: Sequence[Path] = (),
    source: EngineSource | None = None,
    allow_tf32: bool = False,
) -> EngineInspectReport:
    """The layers of a plan, and, given the model, whether they compute in its types.

    Args:
        source: the model; where the plan has a sidecar it must be the one that the plan was built from.

    Raises:
        BadInputError: the plan is damaged, of another version or device, or of another model.
    """
    content, sidecar = read_plan(path)
    if source is not None and sidecar is not None and source.sha256 != sidecar.model_sha256:
        raise BadInputError(
            f"{source.path}: {path} was not built from this file, but from {sidecar.model} or an older state"
        )
    engine = load_plan(path, tensorrt, plugins)
    report = EngineInspectReport(
        plan=str(path),
        plan_sha256=hashlib.sha256(content).hexdigest(),
        plan_bytes=len(content),
        tensorrt_version=tensorrt.version,
        gpu=tensorrt.gpu.name,
        compute_capability=tensorrt.gpu.capability_text,
        inputs=tensorrt.tensors(engine, inputs=True),
        outputs=tensorrt.tensors(engine, inputs=False),
        layers=read_layers(tensorrt.layer_information(engine)),
    )
    report.precisions = precisions(report.layers)
    if source is not None:
        form = Form(sidecar.form) if sidecar is not None else _form_in(report, source.form)
        report.model = str(source.path)
        wanted = contractions(convert_form(source.model, form))
        report.precision_check = check_precision(wanted, report.layers, allow_tf32)
    return report


def _form_in(report: EngineInspectReport, form: Form) -> Form:
    """The form that a plan without a sidecar was built from, by its layers."""
    if form != Form.FUSED:
        return form
    return Form.PLUGIN if any(layer.plugin for layer in report.layers) else Form.PORTABLE


def _present(output: Path, key: Key, force: bool) -> EngineReport | None:
    """The report of a plan that is there and is what is wanted; None if there is none, or it may be replaced."""
    if not output.exists():
        check_writable(output, force)
        return None
    try:
        _, report = read_plan(output)
    except BadInputError as error:
        if not force:
            raise BadInputError(f"{error}; or replace it with --force") from None
        return None
    if report is None or force:
        check_writable(output, force)
    if report is None:
        return None
    changed = differences(report.key, key)
    if not changed:
        return report
    text = "; ".join(changed)
    if not force:
        raise BadInputError(
            f"{output}: exists already and is stale: {text}. Choose another name, or replace it with --force"
        )
    logger.info("%s: is replaced: %s", output, text)
    return None


def _write(output: Path, content: bytes, report: EngineReport, force: bool) -> None:
    """The plan and its sidecar; neither without the other."""
    with atomic_write(output, force) as plan, atomic_write(sidecar_of(output), force) as sidecar:
        plan.write_bytes(content)
        sidecar.write_text(report.to_json(), encoding="utf-8")


# -- cache -----------------------------------------------------------------------------------------------------------


def _cached(cache: Path, key: Key) -> Plan | None:
    path = cache / f"{digest(key)}.plan"
    if not path.exists():
        return None
    try:
        content, report = read_plan(path)
    except BadInputError as error:
        logger.warning("an entry of the cache is not used: %s", error)
        return None
    return None if report is None or report.key != key else Plan(content, report)


def _store(cache: Path, key: Key, plan: Plan) -> None:
    """A cache only saves time: that it cannot be written is said, but fails nothing."""
    path = cache / f"{digest(key)}.plan"
    try:
        _write(path, plan.content, plan.report.model_copy(update={"plan": str(path)}), force=True)
    except (MsconvError, OSError) as error:
        logger.warning("the plan was not put into the cache: %s", error)


def _nearest(cache: Path, key: Key, model: Path) -> str:
    """What differs in the entry of the same file that is most like what is wanted; empty if there is none."""
    found: list[list[str]] = []
    for path in cache.glob("*.plan"):
        try:
            report = read_sidecar(path)
        except BadInputError:
            continue
        if report is not None and Path(report.model).resolve() == model.resolve():
            found.append(differences(report.key, key))
    return "; ".join(sorted(found, key=len)[0]) if found else ""
