"""Together with other optimizers, before ours and behind it: the outputs stay what they were.

A file that another optimizer spoils is not ours to answer for, and no reason to pass either: where its result differs from
what it was given, or does not load, ours is compared with what it was given (which has to agree all the same), and the test
is reported as an expected failure that names the optimizer.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.other_optimizers import OPTIMIZERS, OtherOptimizers
from tests.metamorphic.cases import ZOO_FILES, random_cases
from tests.metamorphic.relations import Case, outputs
from tests.surgery.graphs import compare, session
from tests.surgery.random_graphs import defined_by_onnxruntime

pytestmark = defined_by_onnxruntime
NETWORKS = (
    "noise_map_denoiser",
    "coordinate_encoder",  # onnxslim 0.1.98 changes its outputs
    "conditional_decoder",
    "unfolded_convolution",
    "collapsible_blocks",
)
LEVELS = {
    "onnxruntime-basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "onnxruntime-extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def _absent(name: str) -> bool:
    return name not in LEVELS and importlib.util.find_spec(name) is None


every_optimizer = pytest.mark.parametrize(
    "other",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                _absent(name), reason=f"{name} is not installed: pip install 'msconv-deploy[bench]'"
            ),
        )
        for name in (*OPTIMIZERS, *LEVELS)
    ],
)


class SpoiledError(Exception):
    """Another optimizer failed, or its result is not the model that it was given."""


@pytest.fixture(scope="module")
def others():
    with OtherOptimizers(timeout=60) as running:
        yield running


@pytest.fixture
def optimizer(others, other, tmp_path):
    """model -> model by the other optimizer; raises SpoiledError."""

    def by_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[other]
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            session(model)  # it is not the model
            raise SpoiledError(f"failed: {str(error)[:200]}") from error
        return onnx.load(tmp_path / "optimized.onnx")

    def by_another(model: onnx.ModelProto) -> onnx.ModelProto:
        answer = others(other, model.SerializeToString())
        if isinstance(answer, str):
            raise SpoiledError(answer)
        return onnx.load_model_from_string(answer)

    return by_onnxruntime if other in LEVELS else by_another


def given_to(optimizer, case: Case) -> onnx.ModelProto:
    """What another optimizer makes of a model; SpoiledError if that is another model."""
    found = optimizer(case.model)
    try:
        case.agrees(found, "another optimizer")
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise SpoiledError(f"its result is not the model: {str(error)[:200]}") from error
    return found


def ours_behind(optimizer, case: Case) -> bool:
    """Ours behind another one; was anything rewritten? Where the other one spoils the model, ours must keep what it got."""
    try:
        found = given_to(optimizer, case)
    except SpoiledError:
        found = optimizer(case.model)  # again SpoiledError if it failed
        ours = case.optimize(found)
        for expected, got in zip(outputs(found, case.inputs), outputs(ours.model, case.inputs), strict=True):
            compare(expected, got, (case.label, "ours on a spoiled file"), case.tolerance)
        raise
    ours = case.optimize(found)
    case.agrees(ours.model, "ours behind another optimizer")
    return ours.changed


def ours_before(optimizer, case: Case) -> bool:
    """Ours first. Our result agrees, so that what differs behind the other one is its doing."""
    case.agrees(case.result.model, "ours")
    given_to(optimizer, Case(case.label, case.result.model, case.inputs, tolerance=case.tolerance))
    return case.result.changed


@every_optimizer
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", ["behind", "before"])
def test_networks(optimizer, other, networks, name, order):
    _judged(optimizer, other, networks[name], order)


@every_optimizer
@pytest.mark.parametrize("file", ZOO_FILES[::2])
@pytest.mark.parametrize("order", ["behind", "before"])
def test_files_of_other_exporters(optimizer, other, zoo, file, order):
    _judged(optimizer, other, zoo[file], order)


def _judged(optimizer, other, case: Case, order: str) -> None:
    try:
        changed = ours_behind(optimizer, case) if order == "behind" else ours_before(optimizer, case)
    except SpoiledError as error:
        pytest.xfail(f"outside: {other} on {case.label}: {error}")
    fused = other == "onnxruntime-extended"  # its FusedConv is an operator of its own, which no rule knows
    assert changed or (fused and order == "behind"), f"{order} {other} nothing is found to rewrite"


@every_optimizer
def test_random_graphs(optimizer, other):
    """Behind and before, on the same graphs in every run; how many the other one spoiled is limited."""
    compared, spoiled = 0, []
    for case in random_cases(10**4, 16):
        for way in (ours_behind, ours_before):
            try:
                way(optimizer, case)
                compared += 1
            except SpoiledError as error:
                spoiled.append((case.label, str(error)))
    assert compared > len(spoiled), spoiled
    print(f"{other}: {compared} compared, spoiled: {spoiled}")


def test_a_spoiled_file_is_told_from_ours(networks):
    """Both ways: an optimizer that scales a weight is found out, one that keeps the model is not."""
    case = networks["noise_map_denoiser"]

    def scaled(model: onnx.ModelProto) -> onnx.ModelProto:
        spoiled = onnx.ModelProto()
        spoiled.CopyFrom(model)
        for tensor in spoiled.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), tensor.name))
        return spoiled

    with pytest.raises(SpoiledError, match="not the model"):
        ours_behind(scaled, case)
    with pytest.raises(SpoiledError, match="not the model"):
        ours_before(scaled, case)
    assert ours_behind(lambda model: model, case)
    assert ours_before(lambda model: model, case)
