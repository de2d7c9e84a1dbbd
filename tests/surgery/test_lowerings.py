"""Every lowering that a site is offered is really written as it says."""

import pytest

from tests.surgery.graphs import Net, compare, feeds, session, spelled

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
    offered: list[list[str]] = []

    def pick(names):
        offered.append(names)
        return lowering

    result = spelled(model, pick)
    assert lowering in offered[0]
    (last,) = [n for n in result.graph.node if n.output[0] == model.graph.output[0].name]
    while last.op_type == "Identity":
        (last,) = [n for n in result.graph.node if n.output[0] == last.input[0]]
    assert last.op_type == WRITTEN[lowering]
    assert any(n.op_type == "Expand" for n in result.graph.node) == (lowering == "expanded-add")
    given = feeds(model, {})
    compare(session(model).run(None, given), session(result).run(None, given), lowering)
