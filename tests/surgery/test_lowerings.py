"""Every lowering that a site is offered is really written as it says."""

from pathlib import Path

import pytest

from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.rules import tile_concat_conv
from tests.surgery.graphs import Net, compare, feeds, session

# lowering -> operators that make up the site's output, beside those of the core
WRITTEN = {"broadcast-add": "Add", "dynamic-bias": "Conv", "expanded-add": "Add"}


def one_sample():
    net = Net()
    image, label = net.input(1, 3, 6, 5, name="x"), net.input(1, 2, 1, 1, name="z")
    joined = net.node("Concat", image, net.node("Expand", label, net.ints(1, 2, 6, 5)), axis=1)
    net.outputs.append(net.node("Conv", joined, net.random(4, 5, 1, 1), net.random(4)))
    return net.model()


@pytest.mark.parametrize("lowering", WRITTEN)
def test_the_lowering_is_what_is_written(lowering):
    model = one_sample()
    editable = EditableModel(model, Path(), 17)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, 17)
    (node,) = [n for n in editable.graph.nodes if n.op == "Conv"]
    found = tile_concat_conv.match(node, symbols, decomposer)
    assert lowering in tile_concat_conv.lowerings(symbols, found)
    built = tile_concat_conv.rewrite(editable, symbols, found, editable.new_prefix("site"), lowering)
    found.node.outputs.clear()
    editable.insert(built, {"msconv.rule": "test"})
    result = editable.export()
    (last,) = [n for n in result.graph.node if n.output[0] == model.graph.output[0].name]
    while last.op_type == "Identity":
        (last,) = [n for n in result.graph.node if n.output[0] == last.input[0]]
    assert last.op_type == WRITTEN[lowering]
    assert any(n.op_type == "Expand" for n in result.graph.node) == (lowering == "expanded-add")
    given = feeds(model, {})
    compare(session(model).run(None, given), session(result).run(None, given), lowering)
