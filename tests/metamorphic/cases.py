"""The models on which the relations are held: random graphs, and small networks from the exporters."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import onnx

from msconv_deploy.ops.forms import Form
from tests.fuzz.graphs import random_case as fuzzed_case
from tests.metamorphic.relations import Arrays, Case
from tests.surgery.graphs import feeds, session
from tests.surgery.random_graphs import random_case, random_merged_case

SEEDS = 20


def random_cases(first: int = 0, count: int = SEEDS) -> list[Case]:
    """Random graphs that ONNX Runtime accepts, each with the sizes at which it runs; every other one is the fuzzer's."""
    drawn = [_fuzzed(seed) if seed % 2 else _tiled(seed) for seed in range(first, first + count)]
    return [case for case in drawn if case is not None]


def _tiled(seed: int) -> Case | None:
    drawn = (random_merged_case if seed % 4 == 2 else random_case)(Random(seed))
    inputs = _inputs(drawn.model, drawn.sizes)
    return Case(f"tiled {seed}", drawn.model, inputs) if inputs else None


def _fuzzed(seed: int) -> Case | None:
    drawn = fuzzed_case(seed)
    inputs = _inputs(drawn.model, drawn.sizes)
    options = {"allow": drawn.allow, "form": Form(drawn.form), "when": drawn.when}
    return Case(f"fuzzed {seed}", drawn.model, inputs, **options) if inputs else None


def _inputs(model: onnx.ModelProto, sizes: list[dict[str, int]]) -> list[Arrays]:
    """Those at which the model runs; none if ONNX Runtime does not load it."""
    try:
        running = session(model)
    except Exception:
        return []
    inputs = []
    for number, assignment in enumerate(sizes or [{}]):
        given = feeds(model, assignment, number)
        try:
            found = running.run(None, given)
        except Exception:  # sizes that the model itself refuses
            continue
        if all(array.size for array in found):  # a rewrite may refuse images without windows
            inputs.append(given)
    return inputs


NETWORKS = (
    "noise_map_denoiser",
    "latent_distance_field",
    "coordinate_encoder",
    "conditional_decoder",
    "unfolded_convolution",
    "window_statistics",
    "channel_sum_filter",
    "collapsible_blocks",
    "radial_basis_functions",
)
"""Of benchmarks/networks.py: every rule is applied in one of them."""


def exported_networks(folder: Path) -> dict[str, Case]:
    """Networks of the benchmarks as the TorchScript exporter spells them (needs torch), at small sizes."""
    from benchmarks.networks import NETWORKS as ALL
    from benchmarks.networks import export

    rng = np.random.default_rng(0)
    cases = {}
    for name in NETWORKS:
        network = ALL[name]
        export(network, folder / f"{name}.onnx", dynamo=False)
        shapes = {
            key: [min(extent, 24) if axis in network.dynamic[key] else extent for axis, extent in enumerate(shape)]
            for key, shape in network.inputs.items()
        }
        inputs = [{key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}]
        cases[name] = Case(name, onnx.load(folder / f"{name}.onnx"), inputs, network.allow, tolerance=1e-4)
    return cases


ZOO = Path(__file__).parents[3] / "shared" / "zoo"
ZOO_FILES = (
    "tf_broadcast_to.tf17_dyn.onnx",
    "film_bn_act_chain.dy18_dyn.onnx",
    "tf_coordconv.tf17_dyn.onnx",
    "jax_coordconv.jx_dynB.onnx",
    "pd_label_tile.pd13_dynB.onnx",
    "grouped_trap.ts13_dyn.onnx",
    "din_attention.ts13_dyn.onnx",
    "cvae_dec.ts17_dynB.onnx",
    "tf_repeatvector_conv1d.tf17_dynB.onnx",
    "solov2_coord.ts13_dyn.onnx",
)
"""Small files, one or two from each exporter."""


def zoo_cases() -> dict[str, Case]:
    """Files of the folder ``shared/zoo`` beside the checkout; none where it is not there."""
    if not (ZOO / "manifest.json").exists():
        return {}
    manifest = json.loads((ZOO / "manifest.json").read_text())
    cases = {}
    for file in ZOO_FILES:
        rng = np.random.default_rng(0)
        model = onnx.load(ZOO / file)
        names = {value.name for value in model.graph.input}
        inputs = {
            name: rng.integers(0, 2, shape).astype(dtype)
            if "int" in dtype or "bool" in dtype
            else rng.standard_normal(shape).astype(dtype)
            for name, (dtype, shape) in manifest[file]["inputs"].items()
            if name in names
        }
        cases[file] = Case(file, model, [inputs], tolerance=1e-4)
    return cases
