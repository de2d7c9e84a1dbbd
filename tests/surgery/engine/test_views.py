"""Views: what index arithmetic says of a chain of operators is what ONNX Runtime computes, element by element."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.engine.views import Digit, ImpossibleError, Probe, View
from tests.surgery.graphs import Net, session


def values_of(view: View, source: np.ndarray) -> np.ndarray:
    """The elements of a view, by its definition."""
    out = np.zeros(view.shape, source.dtype)
    extents = [d.extent for axis in view.axes for d in axis]
    for digits in np.ndindex(*extents):
        steps = [d.steps for axis in view.axes for d in axis]
        index = np.array(view.offset) + sum((n * np.array(s) for n, s in zip(digits, steps, strict=True)), 0)
        if (index >= 0).all() and (index < source.shape).all():
            out.reshape(-1)[np.ravel_multi_index(digits, extents) if extents else 0] = source[tuple(index)]
    return out


def chain(net: Net, x: str, shape: list[int], draw) -> tuple[str, list[int]]:
    """One operator more, drawn at random, and the shape behind it."""
    op = draw(st.sampled_from(["Transpose", "Reshape", "Slice", "Pad", "Gather", "Unsqueeze", "Concat", "Split"]))
    axis = draw(st.integers(0, len(shape) - 1))
    extent = shape[axis]
    if op == "Transpose":
        order = draw(st.permutations(range(len(shape))))
        return net.node(op, x, perm=order), [shape[i] for i in order]
    if op == "Reshape":
        if draw(st.booleans()) and len(shape) > 1:
            at = min(axis, len(shape) - 2)
            shape = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        else:
            part = draw(st.sampled_from([n for n in range(1, extent + 1) if extent % n == 0]))
            shape = [*shape[:axis], part, extent // part, *shape[axis + 1 :]]
        return net.node(op, x, net.ints(*shape)), shape
    if op == "Slice":
        start, step = draw(st.integers(0, extent - 1)), draw(st.integers(1, 3))
        end = draw(st.integers(start + 1, extent))
        y = net.node(op, x, net.ints(start), net.ints(end), net.ints(axis), net.ints(step))
        return y, [*shape[:axis], len(range(start, end, step)), *shape[axis + 1 :]]
    if op == "Pad":
        amounts = [0] * (2 * len(shape))
        amounts[axis], amounts[axis + len(shape)] = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        grown = extent + amounts[axis] + amounts[axis + len(shape)]
        return net.node(op, x, net.ints(*amounts)), [*shape[:axis], grown, *shape[axis + 1 :]]
    if op == "Gather":
        count, step = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        starts = np.arange(0, max(1, extent - step * (count - 1)))
        indices = (starts[:, None] + step * np.arange(count)) % extent
        return net.node(op, x, net.constant(indices), axis=axis), [*shape[:axis], *indices.shape, *shape[axis + 1 :]]
    if op == "Unsqueeze":
        return net.with_axes(op, x, axis), [*shape[:axis], 1, *shape[axis:]]
    half = extent // 2
    parts = [
        net.node("Slice", x, net.ints(s), net.ints(s + max(1, half)), net.ints(axis))
        for s in (0, extent - max(1, half))
    ]
    if op == "Concat":
        return net.node(op, *parts, axis=axis), [*shape[:axis], 2 * max(1, half), *shape[axis + 1 :]]
    if extent % 2:
        return x, shape
    first, second = net.node(op, x, net.ints(half, half), outputs=2, axis=axis)
    return draw(st.sampled_from([first, second])), [*shape[:axis], half, *shape[axis + 1 :]]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_followed_is_right(data):
    net = Net(dtype=np.float32)
    shape = [2, 3, 4]
    source = x = net.input(*shape)
    for _ in range(data.draw(st.integers(1, 5))):
        x, shape = chain(net, x, shape, data.draw)
        if np.prod(shape) > 2000 or len(shape) > 6:
            return
    net.output(net.node("Neg", x), rank=len(shape))
    model = net.model()
    editable = EditableModel(model, Path(), 17)
    tensors = editable.graph.tensors()
    try:
        view = Probe(Symbols(editable.inferred), lambda _: 7).view(tensors[x], tensors[source])
    except ImpossibleError:
        view = None
        pytest.fail("the model runs")
    array = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    (expected,) = session(model).run(None, {source: array})
    if view is not None:
        assert view.shape == expected.shape
        assert np.array_equal(values_of(view, array), -expected)


def test_digits_that_count_on_are_one():
    view = View.identity([4, 6])
    assert view.reshaped([2, 2, 3, 2]).reshaped([4, 6]) == view
    assert view.reshaped([8, 3]).axes == ((Digit(4, (1, 0)), Digit(2, (0, 3))), (Digit(3, (0, 1)),))
    assert view.reshaped([3, 8]) is None
    with pytest.raises(ImpossibleError):
        view.reshaped([5, 5])


def test_a_pad_behind_a_cut_is_none():
    """Beyond the end of a cut view there are elements of the source, not zeros."""
    view = View.identity([8])
    assert view.sliced(0, 2, 4).padded(0, 1, 0) is None
    assert view.sliced(0, 2, 4).padded(0, 0, 1) is None
    assert view.sliced(0, 2, 6).padded(0, 0, 1).shape == (7,)
    assert view.sliced(0, 1, 4, 2).padded(0, 1, 1).offset == (-1,)


def test_a_pad_of_windows_is_none():
    """A row of zeros beside rows that overlap: one position beyond the source belongs to rows that are inside as well."""
    windows = View.identity([2, 4]).gathered(1, np.array([[0, 1], [1, 2], [2, 3]]))
    assert windows.padded(1, 1, 0) is None
    assert windows.padded(1, 0, 1) is None
    assert windows.padded(0, 1, 1).shape == (4, 3, 2)
    apart = View.identity([4]).gathered(0, np.array([[0, 1], [2, 3]]))
    assert apart.reshaped([2, 2]).padded(0, 1, 1).offset == (-2,)


@pytest.mark.parametrize("indices", [[0, 1, 3], [[0, 1], [2, 4]], [3, 2, 0]])
def test_irregular_indices_are_no_view(indices):
    assert View.identity([8]).gathered(0, np.array(indices)) is None


def test_indices_outside_do_not_run():
    with pytest.raises(ImpossibleError):
        View.identity([8]).gathered(0, np.array([7, 8]))


@pytest.mark.parametrize("op", ["Equal", "Range", "Slice", "Where", "Squeeze", "Gather"])
def test_an_operand_that_is_not_known_is_not_absent(op):
    """Values that follow from constants follow from all of them: an operand that a caller gives is none of those."""
    net = Net(17)
    known = {
        "Equal": [net.ints(3), net.ints(3)],
        "Range": [net.constant(np.array(n)) for n in (0, 3, 1)],
        "Slice": [net.ints(1, 2, 3), *(net.ints(n) for n in (0, 2, 0, 1))],
        "Where": [net.constant(np.array([True])), net.ints(1), net.ints(2)],
        "Squeeze": [net.constant(np.ones((1, 1), np.int64)), net.ints(0)],
        "Gather": [net.ints(4, 5), net.ints(1)],
    }[op]
    results = [net.node(op, *known)]
    for position in range(len(known)):
        array = next(t for t in net.initializers if t.name == known[position])
        given = net.input(*array.dims, dtype=onnx.helper.tensor_dtype_to_np_dtype(array.data_type))
        results.append(net.node(op, *known[:position], given, *known[position + 1 :]))
    net.output(*results, rank=1)
    editable = EditableModel(net.model(), Path(), net.opset)
    probe = Probe(Symbols(editable.inferred), lambda _: 2)
    tensors = editable.graph.tensors()
    assert probe.values(tensors[results[0]]) is not None
    assert [probe.values(tensors[name]) for name in results[1:]] == [None] * len(known)
