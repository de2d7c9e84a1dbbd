"""Graphs from NNSmith, written as ONNX files. Runs in an environment of its own: see ``fuzz.py`` beside it.

    python generate.py FOLDER FIRST COUNT NODES

Writes ``<seed>.onnx`` for the seeds FIRST to FIRST + COUNT - 1; a seed for which NNSmith finds no graph, or which the
exporter refuses, is told on stderr and has none. NNSmith 0.1.0 is older than this torch: the TorchScript exporter, which it
was written for, has to be asked for.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import warnings
from pathlib import Path

os.environ.setdefault(
    "XDG_CACHE_HOME", str(Path(sys.prefix) / "cache")
)  # which operators the exporter knows is kept there

import numpy as np
import torch

torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)

import onnx  # noqa: E402
from nnsmith.abstract.extension import activate_ext  # noqa: E402
from nnsmith.graph_gen import model_gen  # noqa: E402
from nnsmith.materialize import Model  # noqa: E402
from nnsmith.narrow_spec import auto_opset  # noqa: E402


def generated(kind: type, opset: list, seed: int, nodes: int) -> onnx.ModelProto:
    """The graph of a seed. Every other one is made of images of floats, most of what is drawn otherwise has none."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    images = {"rank_choices": [4], "dtype_choices": ["float32"]} if seed % 2 else {}
    found = model_gen(
        opset=opset, method="symbolic-cinit", seed=seed, max_elem_per_tensor=4096, max_nodes=nodes, **images
    )
    model = kind.from_gir(found.make_concrete())
    model.refine_weights()
    return model.onnx_model


def main(folder: Path, first: int, count: int, nodes: int) -> None:
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    kind = Model.init("onnx", backend_target="cpu")
    kind.add_seed_setter()
    opset = auto_opset(kind, None)
    activate_ext(opset=opset, factory=None)
    for seed in range(first, first + count):
        try:
            onnx.save(generated(kind, opset, seed, nodes), folder / f"{seed}.onnx")
        except Exception as error:  # a seed without a graph: NNSmith's assertions, z3's time limit, the exporter
            print(f"seed {seed}: {type(error).__name__} {str(error).strip()[:120]}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
