"""Which opsets the installed ONNX Runtime runs."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import TensorProto, helper


@cache
def newest_onnxruntime_opset() -> int:
    """The newest opset of the default domain that ONNX Runtime accepts, found by asking it.

    It has no call for this, and its table of versions is in its documentation only.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(onnx.defs.onnx_opset_version(), 16, -1):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            continue
        return opset
    return 16
