"""Small models to serve, built with onnx.helper: no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.ops.configuration import DOMAIN, MSConv2dConfig
from msconv_deploy.ops.forms import Form, convert_form

DIMS = {"image": ["N", 3, "H", "W"], "rows": ["N", 2, "H"], "columns": ["N", 2, "W"], "scalars": ["N", 4]}


def four_sources(path: Path, element: int = TensorProto.FLOAT, form: Form = Form.PORTABLE, width: int = 8) -> Path:
    """y [N,3,H,W] = conv of all four sources, relu, conv; and pooled [N,3,1,1], its mean: seeded weights."""
    rng = np.random.default_rng(5)
    kind = helper.tensor_dtype_to_np_dtype(element)
    first = MSConv2dConfig((1, 1, 1, 1), (3, 3), pads=(1, 1, 1, 1), padding_semantics=1, activation=1)
    shapes = {"w1": (width, 3, 3, 3), "w2": (width, 2, 3, 3), "w3": (width, 2, 3, 3), "w4": (width, 4, 3, 3)}
    shapes |= {"b": (width,), "v": (3, width, 3, 3)}
    weights = {name: (rng.standard_normal(shape) / 5).astype(kind) for name, shape in shapes.items()}
    nodes = [
        helper.make_node(
            "MSConv2d", [*DIMS, "w1", "w2", "w3", "w4", "b"], ["h"], "first", domain=DOMAIN, **first.attributes()
        ),
        helper.make_node("Conv", ["h", "v"], ["y"], "last", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["pooled"], "pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "four_sources",
        [helper.make_tensor_value_info(name, element, dims) for name, dims in DIMS.items()],
        [
            helper.make_tensor_value_info("y", element, ["N", 3, "H", "W"]),
            helper.make_tensor_value_info("pooled", element, ["N", 3, 1, 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(convert_form(helper.make_model(graph, opset_imports=opsets, ir_version=9), form), path)
    return path


def pointwise(path: Path, nodes: list[onnx.NodeProto], element: int = TensorProto.FLOAT, rank: int = 2) -> Path:
    """y = nodes(x), both ["N", "A", ...] of one type."""
    dims = ["N", *"ABCD"[: rank - 1]]
    graph = helper.make_graph(
        nodes,
        "pointwise",
        [helper.make_tensor_value_info("x", element, dims)],
        [helper.make_tensor_value_info("y", element, dims)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
