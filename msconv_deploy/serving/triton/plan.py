"""A TensorRT plan for a repository: is it of this model, and which shapes and plugin libraries does it take?

All of it is read from the plan's sidecar. A plan itself tells nothing without the GPU and the TensorRT that built it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.files import sha256_of
from msconv_deploy.reporting.engine import EngineReport
from msconv_deploy.runtimes.tensorrt.engine import EngineSource, read_plan, sidecar_of
from msconv_deploy.runtimes.tensorrt.plugins import major_in_name

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class CheckedPlan:
    """A plan whose sidecar fits the model.

    Attributes:
        profile: dynamic input -> (min, opt, max) shape.
        plugins: libraries that the server has to load before it.
    """

    path: Path
    report: EngineReport
    profile: Mapping[str, Range]
    plugins: Sequence[Path]

    def batches(self, inputs: Sequence[str]) -> tuple[int, int, int]:
        """Smallest, best and largest batch that every one of these inputs takes; (1, 1, 1) if none is dynamic."""
        shapes = [self.profile[name] for name in inputs if name in self.profile]
        if not shapes:
            return 1, 1, 1
        low, best, high = ([shape[point][0] for shape in shapes] for point in range(3))
        return max(low), min(best), min(high)


def why_not_joined(low: int, high: int) -> str:
    """Why requests to a plan that takes batches from ``low`` to ``high`` cannot be joined; empty if they can."""
    if low > 1:
        return f"the plan takes batches from {low} on, and a request alone is a batch of 1: build it for 1 as well"
    return "the plan takes batches of 1 only" if high < 2 else ""


def open_plan(path: Path, source: EngineSource, libraries: Sequence[Path]) -> CheckedPlan:
    """Check a plan against the model and the plugin libraries.

    Args:
        source: the ONNX file as ``msconv engine`` reads it.
        libraries: given by the user; without any, those that the sidecar names are used where they still are.

    Raises:
        BadInputError: the plan is damaged, has no sidecar, or is of another model; or a library is not what it was built with.
        NotAvailableError: a library that it was built with is not there.
    """
    _, report = read_plan(path)
    if report is None:
        raise BadInputError(
            f"{path}: has no sidecar {sidecar_of(path).name}, so it cannot be told from which model it was built; build it "
            f"here: msconv engine build {source.path} -o {path} --force"
        )
    if report.model_sha256 != source.sha256:
        raise BadInputError(
            f"{path}: was not built from {source.path}, but from {report.model} (SHA-256 {report.model_sha256[:12]}, this "
            f"file has {source.sha256[:12]}); build it again: msconv engine build {source.path} -o {path} --force"
        )
    if report.precision_check.verdict == "differ":
        raise BadInputError(f"{path}: does not compute in the types of its graph: {report.precision_check.reason}")
    profile = {name: _range(path, name, shapes) for name, shapes in report.profile.items()}
    _check_profile(path, profile, source)
    return CheckedPlan(path, report, profile, plugin_libraries(path, report, libraries))


def _range(path: Path, name: str, shapes: Sequence[Sequence[int]]) -> Range:
    if len(shapes) != 3:
        raise BadInputError(f"{sidecar_of(path)}: input {name} has {len(shapes)} shapes; they are min, opt and max")
    low, best, high = (tuple(shape) for shape in shapes)
    return low, best, high


def _check_profile(path: Path, profile: Mapping[str, Range], source: EngineSource) -> None:
    """The optimization profile has the dynamic inputs of the model, with their ranks."""
    wanted = {name: len(shapes[0]) for name, shapes in source.profile.items()}
    found = {name: len(shapes[0]) for name, shapes in profile.items()}
    if wanted != found:
        raise BadInputError(
            f"{path}: its optimization profile has the inputs {_ranks(found)}, but the dynamic inputs of {source.path} "
            f"are {_ranks(wanted)}; build it again: msconv engine build"
        )


def _ranks(ranks: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (rank {rank})" for name, rank in ranks.items()) or "none"


def plugin_libraries(path: Path, report: EngineReport, given: Sequence[Path]) -> list[Path]:
    """The libraries that a plan was built with, found by what they hold.

    Args:
        given: by the user; none: where the sidecar says that they are.

    Raises:
        BadInputError: one that was given is not what the plan was built with.
        NotAvailableError: one that it was built with is not there.
    """
    major = int(report.tensorrt_version.split(".")[0])
    for library in given:
        if not library.is_file():
            raise BadInputError(f"{library}: no such plugin library")
        if major_in_name(library) not in (None, major):
            raise BadInputError(
                f"{library}: was built for TensorRT {major_in_name(library)}, but {path} for TensorRT {major}: name the "
                "library that it was built with"
            )
    built_with = {plugin.sha256: Path(plugin.path) for plugin in report.plugins}
    if not built_with:
        if given:
            raise BadInputError(f"{path}: was built without plugin libraries; leave out --plugin {given[0]}")
        return []
    candidates = {sha256_of(library): library for library in given or built_with.values() if library.is_file()}
    if given and (unknown := [library for digest, library in candidates.items() if digest not in built_with]):
        raise BadInputError(
            f"{unknown[0]}: is not the plugin library that {path} was built with ({_names(report)}); name that one, or "
            "build the plan again with this one: msconv engine build --plugin"
        )
    if missing := [place for digest, place in built_with.items() if digest not in candidates]:
        raise NotAvailableError(
            f"{path}: needs the plugin library {missing[0].name} that it was built with, and {missing[0]} is not there "
            "any more or has changed: name it with --plugin, or build the plan again: msconv engine build"
        )
    found = [candidates[digest] for digest in built_with]
    if len({library.name for library in found}) < len(found):
        raise BadInputError(f"{path}: two of its plugin libraries have one name, and both go beside it: rename one")
    return found


def _names(report: EngineReport) -> str:
    return ", ".join(f"{plugin.path}, SHA-256 {plugin.sha256[:12]}" for plugin in report.plugins)
