"""Files from strangers and large files: external data stays in its folder, nothing is half-written."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.model_files import parameter_count, read_model, write_model


def small_model(elements=4096):
    weight = numpy_helper.from_array(np.arange(elements, dtype=np.float32), "w")
    small = numpy_helper.from_array(np.float32(2), "s")
    nodes = [helper.make_node("Mul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "s"], ["y"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [elements]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, small])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(path, x):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_round_trip_inside_the_file(tmp_path):
    assert write_model(small_model(), tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert read_model(tmp_path / "m.onnx") == small_model()
    assert parameter_count(small_model()) == 4097


def test_large_weights_go_beside_the_file_and_are_copied_on(tmp_path):
    """What happens above 2 GB, tried with a lower limit."""
    model = small_model()
    before = model.SerializeToString()
    files = write_model(model, tmp_path / "m.onnx", max_inline_bytes=1000)
    assert [f.name for f in files] == ["m.onnx", "m.onnx.data"]
    assert model.SerializeToString() == before
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    (tmp_path / "other").mkdir()
    again = write_model(read_model(tmp_path / "m.onnx"), tmp_path / "other" / "n.onnx", tmp_path)
    x = np.ones(4096, np.float32)
    assert np.array_equal(run(again[0], x), np.arange(4096, dtype=np.float32) + 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "other"]


def with_location(folder, location, **entries):
    write_model(small_model(), folder / "m.onnx", max_inline_bytes=1000)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
        elif entry.key in entries:
            entry.value = entries[entry.key]
    onnx.save_model(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", "link", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 15))
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInputError, match=r"tensor 'w'.*not inside the model's folder"):
        read_model(with_location(folder, location))


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("absent.data", {}, "is missing"),
        ("m.onnx.data", {"length": "99999999"}, "one of them is wrong"),
        ("m.onnx.data", {"offset": "4"}, "is too short"),
        ("m.onnx.data", {"offset": "-4"}, "not a number"),
        ("m.onnx.data", {"offset": "x"}, "not a number"),
    ],
)
def test_external_data_that_is_not_there(tmp_path, location, entries, message):
    with pytest.raises(BadInputError, match=message):
        read_model(with_location(tmp_path, location, **entries))


def test_a_model_file_is_not_its_own_external_data(tmp_path):
    """Copies of such a model would need the original file beside them."""
    model = small_model(4)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="m.onnx")
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match=r"m.onnx: tensor 'w'.*is the model file itself"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"not a model", b"\x08\x07\x12"])
def test_files_that_are_no_models(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadInputError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_missing_and_truncated(tmp_path):
    with pytest.raises(BadInputError, match="no such file"):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="is a folder"):
        read_model(tmp_path)
    write_model(small_model(), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_an_invalid_model_is_not_written_and_nothing_is_left(tmp_path):
    model = small_model()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(BadInputError, match="not valid ONNX"):
        write_model(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_existing_files_stay_unless_asked(tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(BadInputError, match="exists already"):
        write_model(small_model(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    write_model(small_model(), tmp_path / "m.onnx", force=True)
    assert read_model(tmp_path / "m.onnx").graph.name == "g"


def test_an_extent_of_minus_one_is_one_that_is_not_known(tmp_path):
    """Some exporters write it so; -2 means nothing."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    for value in values:
        value.type.tensor_type.shape.dim[1].dim_value = -1
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "m.onnx")
    dims = read_model(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.HasField("dim_value") for dim in dims] == [True, False]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -2
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="impossible extents"):
        read_model(tmp_path / "m.onnx")
