"""Real files with tile-concat-conv sites, from several exporters: every one is rewritten, agrees, and builds.

The files lie in ``shared/zoo`` beside the checkout; without them these tests are skipped.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from msconv_deploy.runtimes import tensorrt_rtx
from msconv_deploy.surgery.optimize import optimize_model
from tests.surgery.graphs import session

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
MANIFEST = json.loads((ZOO / "manifest.json").read_text()) if (ZOO / "manifest.json").exists() else {}
FILES = sorted(MANIFEST) or [
    pytest.param("none", marks=pytest.mark.skip(reason="the folder shared/zoo is not beside the checkout"))
]


def feeds(inputs, resized, seed=0):
    rng = np.random.default_rng(seed)
    out = {}
    for name, (dtype, shape) in inputs.items():
        shape = [resized.get(d, d) for d in shape]
        if "int" in dtype:
            out[name] = rng.integers(0, 2, shape).astype(dtype)
        elif "bool" in dtype:
            out[name] = rng.integers(0, 2, shape).astype(bool)
        else:
            out[name] = rng.standard_normal(shape).astype(dtype)
        if "len" in name:  # relative lengths
            out[name] = np.clip(np.abs(out[name]), 0.5, 1).astype(dtype)
    return out


@pytest.mark.parametrize("file", FILES)
def test_every_site_is_rewritten_and_agrees_at_three_sizes(file):
    model = onnx.load(ZOO / file)
    result = optimize_model(model, ZOO, "always")
    assert result.sites
    assert all(site.decision == "rewritten" for site in result.sites)
    inputs = MANIFEST[file]["inputs"]
    extents = sorted({d for _, shape in inputs.values() for d in shape if d > 8})
    original, rewritten = session(model), session(result.model)
    names = {value.name for value in original.get_inputs()}
    ran = 0
    for resized in ({}, {d: d + 4 for d in extents}, {d: max(2, d // 2 + 1) for d in extents}):
        given = {name: array for name, array in feeds(inputs, resized).items() if name in names}
        try:
            expected = original.run(None, given)
        except Exception:  # static extents, or sizes that the model itself refuses
            assert resized
            continue
        ran += 1
        for want, got in zip(expected, rewritten.run(None, given), strict=True):
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    assert ran


@pytest.mark.parametrize("file", FILES)
def test_tensorrt_rtx_parses_and_builds_the_result(file, tmp_path):
    if not tensorrt_rtx.available():
        pytest.skip(f"needs TensorRT-RTX: {tensorrt_rtx.INSTALL}")
    result = optimize_model(onnx.load(ZOO / file), ZOO, "always")
    onnx.save(result.model, tmp_path / "m.onnx")
    dynamic = {v.name for v in result.model.graph.input if any(d.dim_param for d in v.type.tensor_type.shape.dim)}
    profile = {name: (shape,) * 3 for name, (_, shape) in MANIFEST[file]["inputs"].items() if name in dynamic}
    check = tensorrt_rtx.check_build(tmp_path / "m.onnx", profile)
    assert check.status == "passed", check.reason
