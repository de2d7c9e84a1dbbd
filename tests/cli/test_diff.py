"""`msconv diff`: nodes and weights that were added, removed or changed."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.reporting.diff import DiffReport
from tests.tile_models import tiled_conv


@pytest.fixture
def model(tmp_path):
    return tiled_conv(tmp_path / "a.onnx")


def compare(capsys, tmp_path, change) -> tuple[DiffReport, str]:
    """The report and the printed text after a change of the model."""
    model = onnx.load(tmp_path / "a.onnx")
    change(model)
    onnx.save(model, tmp_path / "b.onnx")
    code = main(["diff", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--json", str(tmp_path / "r.json")])
    assert code == ExitCode.OK
    return DiffReport.model_validate_json((tmp_path / "r.json").read_text()), capsys.readouterr().out


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def test_equal_models(model, tmp_path, capsys):
    report, out = compare(capsys, tmp_path, lambda m: None)
    assert report.equal
    assert out.strip() == "no difference"


def test_where_weights_lie_makes_no_difference(model, tmp_path, capsys):
    tiled_conv(tmp_path / "b.onnx", external=True)
    assert main(["diff", str(model), str(tmp_path / "b.onnx")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_added_and_removed_nodes(model, tmp_path, capsys):
    def change(m):
        m.graph.node.remove(node(m, "relu"))
        m.graph.node.insert(len(m.graph.node) - 1, helper.make_node("Tanh", ["t1"], ["t3"], "tanh"))
        node(m, "second").input[0] = "t3"

    report, out = compare(capsys, tmp_path, change)
    assert [(n.op, n.output) for n in report.nodes_removed] == [("Relu", "t2")]
    assert [(n.op, n.output) for n in report.nodes_added] == [("Tanh", "t3")]
    assert [(c.name, c.what) for c in report.nodes_changed] == [("y", ["inputs: t2, w2 became t3, w2"])]
    assert "nodes: 1 added, 1 removed, 1 changed" in out


def test_changed_attributes_and_names(model, tmp_path, capsys):
    def change(m):
        node(m, "second").attribute.append(helper.make_attribute("group", 1))
        node(m, "first").attribute[1].ints[0] = 2
        node(m, "relu").name = "activation"

    report, _ = compare(capsys, tmp_path, change)
    assert {c.name: c.what for c in report.nodes_changed} == {
        "t1": ["pads: [1, 1, 1, 1] became [2, 1, 1, 1]"],
        "t2": ["name: relu became activation"],
        "y": ["group: (none) became 1"],
    }


def test_weights(model, tmp_path, capsys):
    def change(m):
        weights = {t.name: t for t in m.graph.initializer}
        value = numpy_helper.to_array(weights["b1"]).copy()
        value[3] += 1
        weights["b1"].CopyFrom(numpy_helper.from_array(value, "b1"))
        weights["w2"].CopyFrom(numpy_helper.from_array(np.zeros((2, 24, 3, 1), np.float32), "w2"))
        m.graph.initializer.remove(weights["s_shape"])
        m.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float16), "new"))

    report, _ = compare(capsys, tmp_path, change)
    changes = {c.name: c.what for c in report.tensors_changed}
    assert changes == {"b1": ["values differ"], "w2": ["float [2, 24, 3, 3] became float [2, 24, 3, 1]"]}
    assert [(t.name, t.dtype, t.shape) for t in report.tensors_added] == [("new", "float16", [2])]
    assert [t.name for t in report.tensors_removed] == ["s_shape"]


def test_interface(model, tmp_path, capsys):
    def change(m):
        m.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        m.opset_import[0].version = 18
        m.ir_version = 9
        del m.metadata_props[:]

    report, _ = compare(capsys, tmp_path, change)
    assert report.interface == [
        "output y: float Nx2xHxW became float batchx2xHxW",
        "opset of ai.onnx: 17 became 18",
        "metadata 'author' is lost",
        "IR version: 8 became 9",
    ]


def test_the_difference_that_optimize_makes(model, tmp_path, capsys):
    assert main(["optimize", str(model), "-o", str(tmp_path / "b.onnx"), "--when", "always", "-q"]) == 0
    assert main(["diff", str(model), str(tmp_path / "b.onnx"), "--json", str(tmp_path / "r.json")]) == 0
    report = DiffReport.model_validate_json((tmp_path / "r.json").read_text())
    assert report.interface == []
    assert "joined" in {n.output for n in report.nodes_removed}
    assert "t1" in {change.name for change in report.nodes_changed}  # the site's output keeps its name


def test_bad_input(model, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no")
    for other, message in (("absent.onnx", "no such file"), ("text.onnx", "not an ONNX model")):
        assert main(["diff", str(model), str(tmp_path / other)]) == ExitCode.BAD_INPUT
        assert message in capsys.readouterr().err
