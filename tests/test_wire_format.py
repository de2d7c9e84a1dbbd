"""Weights that stay in their file: read as references, written as streams, refused where they point elsewhere."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.model_files import MIN_REFERENCE_BYTES, read_model, write_model
from msconv_deploy.wire_format import INLINE_KEY, Spool, is_inline_reference

LARGE = MIN_REFERENCE_BYTES // 4


def model_with(*arrays):
    names = [f"w{i}" for i in range(len(arrays))]
    nodes = [helper.make_node("Identity", ["x"], ["t0"])]
    for i, name in enumerate(names):
        nodes.append(helper.make_node("Add", [f"t{i}", name], [f"t{i + 1}"], f"add{i}"))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [LARGE]) for n in ("x", f"t{len(names)}")]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
    )
    graph.doc_string = "kept"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="p")
    model.metadata_props.add(key="k", value="v")
    return model


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n).astype(np.float32) for n in (LARGE, 1, LARGE, LARGE)]


def test_large_weights_are_read_as_references_and_written_as_they_were(tmp_path, arrays):
    model = model_with(*arrays)
    onnx.save_model(model, tmp_path / "m.onnx")
    read = read_model(tmp_path / "m.onnx")
    assert [is_inline_reference(t) for t in read.graph.initializer] == [True, False, True, True]
    assert len(read.SerializeToString()) < 5000
    write_model(read, tmp_path / "n.onnx", tmp_path)
    again = onnx.load(tmp_path / "n.onnx")
    assert {t.name: t for t in again.graph.initializer} == {t.name: t for t in model.graph.initializer}
    for part in (again, model):
        del part.graph.initializer[:]
    assert again == model
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "n.onnx"]


def test_references_go_to_external_data_above_the_limit(tmp_path, arrays):
    onnx.save_model(model_with(*arrays), tmp_path / "m.onnx")
    files = write_model(read_model(tmp_path / "m.onnx"), tmp_path / "n.onnx", tmp_path, max_inline_bytes=LARGE)
    assert [f.name for f in files] == ["n.onnx", "n.onnx.data"]
    again = onnx.load(tmp_path / "n.onnx")
    for tensor, array in zip(again.graph.initializer, arrays, strict=True):
        assert np.array_equal(numpy_helper.to_array(tensor), array)


def test_the_mark_of_a_reference_opens_no_other_file(tmp_path, arrays):
    """A stranger's file may carry the mark: the path still has to be inside the folder."""
    model = model_with(arrays[0])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/hostname"), ("offset", "0"), ("length", "4"), (INLINE_KEY, "1")):
        tensor.external_data.add(key=key, value=value)
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="not inside the model's folder"):
        read_model(tmp_path / "m.onnx")


def test_a_spool_is_a_file_of_ours(tmp_path, arrays):
    model = model_with(*arrays)
    spool = Spool()
    for tensor in model.graph.initializer:
        spool.add(tensor)
    write_model(model, tmp_path / "m.onnx")
    again = onnx.load(tmp_path / "m.onnx")
    assert {t.name: numpy_helper.to_array(t).tobytes() for t in again.graph.initializer} == {
        f"w{i}": a.tobytes() for i, a in enumerate(arrays)
    }


@pytest.mark.parametrize("cut", [1, 7, 100, LARGE])
def test_truncated_files(tmp_path, arrays, cut):
    onnx.save_model(model_with(*arrays), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[:-cut])
    with pytest.raises(BadInputError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")
