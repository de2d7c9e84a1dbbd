"""``msconv package`` without the command line: a model, or its TensorRT plan, as a model of a Triton repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from msconv_deploy.errors import BadInputError
from msconv_deploy.files import sha256_of
from msconv_deploy.model_files import read_model, staged_copy
from msconv_deploy.ops.forms import Form, default_opset, form_of
from msconv_deploy.reporting.package import (
    Backend,
    ModelSidecar,
    PackagedPlugin,
    PackagedVersion,
    PackageReport,
)
from msconv_deploy.runtimes.tensorrt.engine import read_source
from msconv_deploy.runtimes.tensorrt.key import model_sha256
from msconv_deploy.serving.triton.config import (
    DEFAULT_QUEUE_DELAY_US,
    MODEL_FILES,
    Batching,
    ModelSettings,
    build_config,
    config_text,
)
from msconv_deploy.serving.triton.deploy import Deployment, image_tag, is_ours, kubernetes_name
from msconv_deploy.serving.triton.plan import CheckedPlan, open_plan
from msconv_deploy.serving.triton.repository import (
    CONFIG,
    SIDECAR,
    Placement,
    check_name,
    find_place,
    keep_versions,
    locked,
    other_models,
    put_in_place,
    staging,
)
from msconv_deploy.serving.triton.validate import Examined, check_folder, examine, write_sample
from msconv_deploy.validation.inputs import InputOptions

DEFAULT_MAX_BATCH = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PackageOptions:
    """What the user asked for.

    Attributes:
        plan: TensorRT plan to serve instead of the ONNX file that it was built from.
        plugins: libraries that the plan was built with; none: those that its sidecar names.
        name: of the model; None: the file's stem.
        version: None: that of the same file if it is there, else 1.
        max_batch: None: chosen; 0: requests are not joined.
        preferred: batch sizes that are sent off at once; None: what the plan is tuned for.
        instances: executions at once, on each device.
        image: tag of the Triton image; None: chosen.
        storage_uri: where KServe finds the repository; None: a volume claim of the repository's name.
        input_shapes: of the warm-up sample.
        inputs: seed and ranges of its values.
        force: replace a folder that holds another model.
    """

    plan: Path | None = None
    plugins: Sequence[Path] = ()
    name: str | None = None
    version: int | None = None
    max_batch: int | None = None
    preferred: Sequence[int] | None = None
    max_queue_delay_us: int = DEFAULT_QUEUE_DELAY_US
    instances: int = 1
    image: str | None = None
    storage_uri: str | None = None
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    inputs: InputOptions = field(default_factory=InputOptions)
    force: bool = False


def package_model(
    path: Path, repository: Path, options: PackageOptions, progress: Progress = lambda step: None
) -> PackageReport:
    """Make or update a model of a repository. Nothing is written unless everything was verified.

    Raises:
        BadInputError: the model, the plan, an option, or what is in the repository does not fit.
        NotAvailableError: a plugin library is not there.
        UnverifiedError: the model runs on no input that was tried.
    """
    model = read_model(path)
    name = check_name(options.name or path.stem)
    if options.plan is None:
        _check_onnxruntime(path, form_of(model), options)
    with locked(repository, lambda: progress(f"waiting for another msconv package in {repository.absolute().parent}")):
        return _package(path, model, name, repository, options, progress)


def _package(
    path: Path, model: onnx.ModelProto, name: str, repository: Path, options: PackageOptions, progress: Progress
) -> PackageReport:
    """What is read of the repository stays true until it is written to: only under its lock."""
    form = form_of(model)
    backend: Backend = "onnxruntime" if options.plan is None else "tensorrt"
    sha256 = model_sha256(model, path)
    placement = find_place(repository, name, options.version, sha256, backend, options.force)
    others = other_models(repository, name)
    plan = None if options.plan is None else open_plan(options.plan, read_source(path), options.plugins)
    tag = image_tag(options.image, None if plan is None else plan.report.tensorrt_version, others)
    progress(f"running {path.name}")
    examined = examine(path, model, name, options.inputs, options.input_shapes, plan)
    placement.check_interface(examined.inputs, examined.outputs)
    batching, notes = _batching(examined, plan, options)
    with staging(repository) as folder:
        progress(f"writing version {placement.version} of {name}")
        staged = folder / name
        settings = _stage(staged, path, model, placement, plan, examined, batching, options)
        keep_versions(placement, staged)
        entry = _entry(path, sha256, form, plan, placement)
        versions = {**(placement.kept or {}), str(placement.version): entry}
        sidecar = ModelSidecar(
            name=name,
            backend=backend,
            inputs=examined.inputs,
            outputs=examined.outputs,
            versions=dict(sorted(versions.items(), key=lambda item: int(item[0]))),
            image=tag,
        )
        (staged / SIDECAR).write_text(sidecar.model_dump_json(indent=2) + "\n", encoding="utf-8")
        progress("checking what was written")
        checks = check_folder(staged, placement.version, examined.inputs, examined.outputs, settings.warmup)
        if not examined.not_joined:
            checks.append("samples that are run together give what each gives alone")
        deployment = Deployment(
            repository,
            sorted([*others, sidecar], key=lambda model: model.name),
            options.storage_uri or f"pvc://{kubernetes_name(repository.absolute().name)}",
        )
        written, left = _write_deployment(deployment, folder)
        notes += [f"{file} in the repository is not msconv's any more: it was left as it is" for file in left]
        files = sorted(str(p.relative_to(folder)) for p in staged.rglob("*") if p.is_file())
        put_in_place(staged, placement.folder, written)
    return PackageReport(
        seed=options.inputs.seed,
        action=placement.action,
        repository=str(repository),
        name=name,
        version=placement.version,
        backend=backend,
        model=str(path),
        model_sha256=sha256,
        model_form=form.value,
        plan=None if plan is None else str(plan.path),
        plan_sha256=entry.plan_sha256,
        plugins=entry.plugins,
        inputs=examined.inputs,
        outputs=examined.outputs,
        max_batch_size=batching.max_batch_size,
        preferred_batch_sizes=list(batching.preferred),
        max_queue_delay_us=batching.max_queue_delay_us if batching.max_batch_size else None,
        instances=options.instances,
        warmup={input_name: list(array.shape) for input_name, array in examined.sample.items()},
        checks=checks,
        notes=notes + _notes(default_opset(model), plan, deployment, others),
        files=files,
        image=deployment.tag,
        launch=deployment.launch(str(repository.absolute())),
    )


def _check_onnxruntime(path: Path, form: Form, options: PackageOptions) -> None:
    if form == Form.PLUGIN:
        raise BadInputError(
            f"{path}: is in plugin form, and the onnxruntime backend runs its nodes msconv::MSConv2d only where a function "
            "carries their body: convert it (msconv convert --form fused), or give the plan that was built from it (--plan)"
        )
    if options.plugins:
        raise BadInputError("--plugin is for TensorRT plans: give --plan, or leave it out")


def _batching(examined: Examined, plan: CheckedPlan | None, options: PackageOptions) -> tuple[Batching, list[str]]:
    """The batching that was asked for, or what the model can do.

    Raises:
        BadInputError: the model cannot do what was asked for.
    """
    largest = None if plan is None else plan.batches(list(plan.profile))[2]
    wanted = options.max_batch
    if examined.not_joined:
        if wanted:
            raise BadInputError(f"--max-batch {wanted}: requests cannot be joined: {examined.not_joined}; leave it out")
        if options.preferred:
            raise BadInputError(f"--preferred-batch: requests cannot be joined: {examined.not_joined}; leave it out")
        return Batching(0), [f"requests are not joined: {examined.not_joined}"]
    if wanted is None:
        wanted = DEFAULT_MAX_BATCH if largest is None else min(DEFAULT_MAX_BATCH, largest)
    elif largest is not None and wanted > largest:
        raise BadInputError(
            f"--max-batch {wanted}: the plan takes batches up to {largest}; choose less, or build it for more: msconv engine "
            "build --shapes"
        )
    preferred = tuple(options.preferred or ())
    if options.preferred is None and plan is not None:
        best = plan.batches(list(plan.profile))[1]
        preferred = (best,) if 1 < best <= wanted else ()
    return Batching(wanted, preferred, options.max_queue_delay_us), []


def _stage(
    staged: Path,
    path: Path,
    model: onnx.ModelProto,
    placement: Placement,
    plan: CheckedPlan | None,
    examined: Examined,
    batching: Batching,
    options: PackageOptions,
) -> ModelSettings:
    """Write the model's folder: version folder, warm-up sample, configuration."""
    backend: Backend = "onnxruntime" if plan is None else "tensorrt"
    version_folder = staged / str(placement.version)
    version_folder.mkdir(parents=True)
    if plan is None:
        with staged_copy(model, path, version_folder / MODEL_FILES[backend]):
            pass
    else:
        shutil.copyfile(plan.path, version_folder / MODEL_FILES[backend])
        for library in plan.plugins:
            shutil.copyfile(library, version_folder / library.name)
    settings = ModelSettings(
        name=staged.name,
        backend=backend,
        inputs=examined.inputs,
        outputs=examined.outputs,
        batching=batching,
        instances=options.instances,
        warmup=write_sample(staged, examined.sample),
    )
    (staged / CONFIG).write_text(config_text(build_config(settings)), encoding="utf-8")
    return settings


def _entry(path: Path, sha256: str, form: Form, plan: CheckedPlan | None, placement: Placement) -> PackagedVersion:
    entry = PackagedVersion(model=str(path), model_sha256=sha256, model_form=form.value)
    if plan is not None:
        folder = f"{placement.folder.name}/{placement.version}"
        entry.plan_sha256 = plan.report.plan_sha256
        entry.tensorrt_version = plan.report.tensorrt_version
        entry.compute_capability = plan.report.compute_capability
        entry.plugins = [PackagedPlugin(file=f"{folder}/{lib.name}", sha256=sha256_of(lib)) for lib in plan.plugins]
    return entry


def _write_deployment(deployment: Deployment, folder: Path) -> tuple[dict[Path, Path], list[str]]:
    """Stage the repository's own files: staged file -> place, and the names of those that are the user's by now."""
    staged, left = {}, []
    for file, text in deployment.files().items():
        place = deployment.repository / file
        if is_ours(place):
            (folder / file).write_text(text, encoding="utf-8")
            staged[folder / file] = place
        else:
            left.append(file)
    return staged, left


def _notes(opset: int, plan: CheckedPlan | None, deployment: Deployment, others: Sequence[ModelSidecar]) -> list[str]:
    notes = []
    if plan is None:
        notes.append(
            f"the image needs an ONNX Runtime that knows opset {opset}; {deployment.tag} is in the files, --image chooses "
            "another"
        )
    else:
        notes.append(
            f"the plan was not run: it needs TensorRT {plan.report.tensorrt_version} and compute capability "
            f"{plan.report.compute_capability}; `msconv engine inspect` and `msconv validate --runtimes trt` do that there"
        )
        if plan.report.precision_check.verdict != "passed":
            notes.append(
                f"whether the plan computes in the types of its graph is unknown: {plan.report.precision_check.reason}"
            )
    if others:
        notes.append(f"the repository also holds {', '.join(other.name for other in others)}")
    return notes
