"""Scenes: parts of models around tiles, windows, neighbouring convolutions and distances, drawn at random.

A scene adds nodes and outputs to a :class:`SharingNet`. Shapes are worked out on the way, so that what it adds is valid;
numbers stay around 1, so that no output leaves the range of its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import onnx

from tests.surgery.graphs import Net
from tests.surgery.random_graphs import Builder, MergedBuilder
from tests.surgery.rules.unfolding import unfold

Complete = Callable[[dict[str, int]], None]
"""Gives the extents that follow from others, and from nothing else."""


class SharingNet(Net):
    """A net whose parts now and then read the same inputs and weights."""

    def __init__(self, rng: Random, opset: int, dtype) -> None:
        super().__init__(opset, dtype, rng.randrange(1000))
        self.rng = rng
        self.sharing = rng.choice([0.0, 0.2, 0.5])
        self._weights: dict[tuple[int, ...], list[str]] = {}

    def input(self, *dims, dtype=None, name=None) -> str:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        same = [known for known, found in self.inputs.items() if found == (kind, dims)]
        if name is None and same and self.rng.random() < self.sharing:
            return self.rng.choice(same)
        return super().input(*dims, dtype=dtype, name=name)

    def random(self, *shape, name=None, dtype=None) -> str:
        if name is not None or dtype is not None:
            return super().random(*shape, name=name, dtype=dtype)
        same = self._weights.setdefault(shape, [])
        if same and self.rng.random() < self.sharing:
            return self.rng.choice(same)
        same.append(super().random(*shape))
        return same[-1]


# -- tiles -------------------------------------------------------------------------------------------------------------


def tiles(net: SharingNet, rng: Random) -> Complete:
    """Tiled operands, a concat, contractions."""
    builder = _builder(Builder, net, rng)
    builder.fill()
    return builder.complete


def merged_axes(net: SharingNet, rng: Random) -> Complete:
    """The same where copies hide in a factor of a merged axis."""
    builder = _builder(MergedBuilder, net, rng)
    builder.fill()
    return builder.complete


def _builder(kind: type[Builder], net: SharingNet, rng: Random) -> Builder:
    builder = kind(rng, net)
    if rng.random() < 0.02:
        builder.extents[rng.choice(builder.axes)] = 0
    return builder


def broadcasts(net: SharingNet, rng: Random) -> Complete:
    """Operators on copies, with no contraction behind them; copies beside a full tensor."""
    builder = _builder(Builder, net, rng)
    builder.reference = net.input(*builder.frame(2))
    if rng.random() < 0.15:
        _periodic(net, rng)
    for _ in range(rng.choice([1, 1, 2])):
        value = builder.tile()
        for _ in range(rng.choice([1, 2, 3])):
            value = builder.chained(value)
        plain = list(value.dims) == builder.frame(value.channels)
        if plain and rng.random() < 0.6:
            full = net.input(*value.dims)
            pair = [value.name, full]
            rng.shuffle(pair)
            op = rng.choice(["Add", "Mul", "Sub", "Min", "Max", "Mean", "Sum", "Where"])
            if op == "Where":
                pair = [net.node("Greater", full, net.scalar(0.1)), *pair]
            value = builder.made(value, net.node(op, *pair))
        net.output(value.name, rank=len(value.dims))
    return builder.complete


def _periodic(net: SharingNet, rng: Random) -> None:
    """A Tile whose blocks repeat beside a full tensor: no copies of one value, though its extents may look like it."""
    block, times = rng.choice([2, 3, 5]), rng.choice([1, 2, 3])
    rows = rng.choice(["H", 4])
    repeated = net.node("Tile", net.input(_batch(rng), 2, 1, block), net.ints(1, 1, 1, times))
    pair = [repeated, net.input(1, 2, rows, block * times)]
    rng.shuffle(pair)
    net.output(net.node(rng.choice(["Add", "Mul", "Sub", "Max"]), *pair), rank=4)


# -- windows -----------------------------------------------------------------------------------------------------------

_LETTERS = "cdefgh"


def windows(net: SharingNet, rng: Random) -> None:
    """Sliding windows, and a product with weights, a sum over channels, a maximum or a mean of them."""
    spatial = rng.choice([1, 2, 2, 2])
    channels = rng.choice([1, 2, 3, 4])
    kernel = [rng.choice([1, 2, 3, 3]) for _ in range(spatial)]
    stride = [rng.choice([1, 1, 2, 3]) for _ in range(spatial)]
    dilation = [rng.choice([1, 1, 2]) for _ in range(spatial)]
    pads = [(rng.choice([0, 1, 2]), rng.choice([0, 1, 2])) for _ in range(spatial)]
    if rng.random() < 0.4:  # the same on both sides, and narrower than the kernel: what networks have
        pads = [(p, p) for p in map(rng.randrange, kernel)]
    dims = [_batch(rng), channels]
    for axis in range(spatial):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        static = max(1, reach - sum(pads[axis])) + rng.choice([0, 1, 2, 3, 5])
        dims.append(rng.choice(["HW"[axis], static]))
    x = net.input(*dims)
    if rng.random() < 0.3:
        x = net.node(rng.choice(["Relu", "Sigmoid", "Identity"]), x)
    wide = unfold(net, x, dims, kernel, stride, dilation, pads)  # [N, C, k1, out1, ...]
    taps, positions = [2 + 2 * i for i in range(spatial)], [3 + 2 * i for i in range(spatial)]
    outputs = rng.choice([1, 2, 4])
    forms = [_columns_product, _columns_product, _rows_product, _filtered, _pooled, _pooled]
    forms += [_einsum] if net.opset >= 12 else []
    y, rank = rng.choice(forms)(net, rng, wide, channels, kernel, taps, positions, outputs)
    if rng.random() < 0.1:
        net.output(wide, rank=2 + 2 * spatial)
    net.output(net.node("Relu", y) if rng.random() < 0.2 else y, rank=rank)


def _batch(rng: Random) -> int | str:
    return rng.choice(["N", 1, 2])


def _columns_product(net, rng, wide, channels, kernel, taps, positions, outputs) -> tuple[str, int]:
    x = net.node("Transpose", wide, perm=[0, 1, *taps, *positions])
    rows = channels * int(np.prod(kernel))
    x = net.node("Reshape", x, net.ints(0, rows, -1))
    y = net.node("MatMul", net.random(outputs, rows), x)
    if rng.random() < 0.4:
        y = net.node("Add", y, net.random(outputs, 1))
    return y, 3


def _rows_product(net, rng, wide, channels, kernel, taps, positions, outputs) -> tuple[str, int]:
    x = net.node("Transpose", wide, perm=[0, *positions, 1, *taps])
    columns = channels * int(np.prod(kernel))
    if rng.random() < 0.5:
        x = net.node("Reshape", x, net.ints(-1, columns))
        turned = rng.random() < 0.5
        weight = net.random(outputs, columns) if turned else net.random(columns, outputs)
        bias = [net.random(outputs)] if rng.random() < 0.5 else []
        return net.node("Gemm", x, weight, *bias, transB=int(turned)), 2
    x = net.node("Reshape", x, net.ints(0, *[0] * len(positions), columns))
    y = net.node("MatMul", x, net.random(columns, outputs))
    if rng.random() < 0.5:
        y = net.node("Add", y, net.random(outputs))
    if rng.random() < 0.5:
        rank = 2 + len(positions)
        return net.node("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)]), rank
    return y, 2 + len(positions)


def _einsum(net, rng, wide, channels, kernel, taps, positions, outputs) -> tuple[str, int]:
    axes = "nc" + "".join(_LETTERS[1 + 2 * i : 3 + 2 * i] for i in range(len(kernel)))
    weight = "o" + "".join(axes[i] for i in (1, *taps))
    result = "no" + "".join(axes[i] for i in positions)
    filters = net.random(outputs, channels, *kernel)
    left, right = rng.sample([(axes, wide), (weight, filters)], 2)
    equation = f"{left[0]},{right[0]}->{result}"
    return net.node("Einsum", left[1], right[1], equation=equation), 2 + len(positions)


def _filtered(net, rng, wide, channels, kernel, taps, positions, outputs) -> tuple[str, int]:
    """One filter times the windows, summed over channels and perhaps over taps."""
    spread = [n for k in kernel for n in (k, 1)]
    product = net.node("Mul", wide, net.constant(_values(net, 1, channels, *spread)))
    axes = [1] if rng.random() < 0.6 else [1, *taps]
    keepdims = rng.choice([0, 1])
    rank = 2 + 2 * len(kernel)
    return net.reduced("ReduceSum", product, *axes, keepdims=keepdims), rank if keepdims else rank - len(axes)


def _pooled(net, rng, wide, channels, kernel, taps, positions, outputs) -> tuple[str, int]:
    op, keepdims = rng.choice(["ReduceMax", "ReduceMean"]), rng.choice([0, 1])
    rank = 2 + 2 * len(kernel)
    if len(taps) == 2 and rng.random() < 0.3:  # in two steps
        inner = net.reduced(op, wide, taps[1], keepdims=keepdims)
        return net.reduced(op, inner, taps[0], keepdims=keepdims), rank if keepdims else rank - 2
    return net.reduced(op, wide, *taps, keepdims=keepdims), rank if keepdims else rank - len(taps)


def _values(net: Net, *shape) -> np.ndarray:
    return net.values.standard_normal(shape).astype(net.dtype)


# -- neighbouring convolutions -------------------------------------------------------------------------------------------


def neighbours(net: SharingNet, rng: Random) -> None:
    """Two or three convolutions in a row with little or nothing between them."""
    spatial = rng.choice([1, 2, 2, 2, 3])
    channels = rng.choice([1, 2, 3, 4])
    dims = [_batch(rng), channels, *(rng.choice(["HWD"[i], rng.choice([4, 6, 9])]) for i in range(spatial))]
    x = net.input(*dims)
    for step in range(rng.choice([2, 2, 2, 3])):
        x, channels = _convolution(net, rng, x, channels, spatial, wide=step == 0)
        if rng.random() < 0.2:
            x = net.node("Identity", x)
        elif rng.random() < 0.1:
            x = net.node("Pad", x, net.ints(*[0, 0, *[1] * spatial] * 2))
        elif rng.random() < 0.1:
            net.output(x, rank=2 + spatial)
    net.output(x, rank=2 + spatial)


def _convolution(net, rng, x, channels, spatial, wide=True) -> tuple[str, int]:
    """A convolution that keeps the middle wide, so that merging it with the next one pays."""
    group = rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
    group = group if rng.random() < 0.3 else 1
    outputs = group * (rng.choice([2, 3, 4, 6]) if wide else rng.choice([1, 2]))
    kernel = [rng.choice([1, 1, 2, 3] if wide else [1, 1, 1, 2, 3]) for _ in range(spatial)]
    attributes = {"group": group}
    if rng.random() < 0.3:
        attributes["strides"] = [rng.choice([1, 2]) for _ in range(spatial)]
    if rng.random() < 0.2:
        attributes["dilations"] = [rng.choice([1, 2]) for _ in range(spatial)]
    if rng.random() < 0.5:
        attributes["pads"] = [rng.choice([0, 1, 2] if wide else [0, 0, 1]) for _ in range(2 * spatial)]
    bias = [net.random(outputs)] if rng.random() < 0.5 else []
    weight = net.random(outputs, channels // group, *kernel)
    return net.node("Conv", x, weight, *bias, **attributes), outputs


# -- distances -----------------------------------------------------------------------------------------------------------


def distances(net: SharingNet, rng: Random) -> None:
    """Pairwise distances of two sets of points."""
    batch = rng.choice([[], [], ["N"], [2]])
    p, q, terms = rng.choice(["P", 1, 4]), rng.choice(["Q", 1, 5]), rng.choice([1, 2, 3, 6])
    first = _points(net, rng, batch, p, terms)
    second = _points(net, rng, batch if rng.random() < 0.8 else [], q, terms)
    at = len(batch)
    a, b = net.with_axes("Unsqueeze", first, -2), net.with_axes("Unsqueeze", second, -3)
    if rng.random() < 0.3:
        a, b = b, a
    if rng.random() < 0.3:
        full = net.shape([*batch, p, q, terms])
        a, b = net.node("Expand", a, full), net.node("Expand", b, full)
    difference = net.node("Sub", a, b)
    if rng.random() < 0.3:
        difference = net.node("Add", difference, net.scalar(rng.choice([1e-6, 0.5])))
    kind = rng.choice(["itself", "power", "ReduceSumSquare", "ReduceL2"])
    axis, keepdims = rng.choice([at + 2, -1]), rng.choice([0, 1])
    if kind == "itself":
        y = net.reduced("ReduceSum", net.node("Mul", difference, difference), axis, keepdims=keepdims)
    elif kind == "power":
        y = net.reduced("ReduceSum", net.node("Pow", difference, net.scalar(2)), axis, keepdims=keepdims)
    else:
        y = net.reduced(kind, difference, axis, keepdims=keepdims)
    net.output(y, rank=at + 2 + keepdims)


def _points(net, rng, batch: Sequence, count, terms: int) -> str:
    if not batch and isinstance(count, int) and rng.random() < 0.3:
        return net.random(count, terms)
    return net.input(*batch, count, terms)


# -- networks ------------------------------------------------------------------------------------------------------------


def network(net: SharingNet, rng: Random) -> None:
    """An image with metadata through several layers: sites below sites, pooled context, skip connections, Q/DQ."""
    n, h, w = _batch(rng), rng.choice(["H", 6, 8]), rng.choice(["W", 5, 8])
    channels = rng.choice([1, 3, 4])
    x = net.input(n, channels, h, w)
    label = net.input(rng.choice([n, 1]), rng.choice([1, 2, 5]))
    if rng.random() < 0.15 and net.dtype == np.float32:
        x = _quantized(net, x)
    size = 2
    for layer in range(rng.choice([1, 2, 2, 3])):
        extra = 0
        if layer == 0 or rng.random() < 0.6:
            pooled = layer > 0 and rng.random() < 0.5
            vector = net.node("GlobalAveragePool", x) if pooled else _lifted(net, label)
            extra = channels if pooled else int(net.inputs[label][1][1])
            parts = [x, spread(net, rng, vector, x, n)]
            rng.shuffle(parts)
            joined = net.node("Concat", *parts, axis=rng.choice([1, -3]))
        else:
            joined = x
        y, outputs = _layer(net, rng, joined, channels + extra, size)
        if outputs == channels and rng.random() < 0.5:
            y = net.node("Add", y, x)  # the shapes agree where the layer keeps them
        x, channels = y, outputs
    net.output(x, rank=4)


def partners(net: SharingNet, rng: Random) -> Complete:
    """Copies and a vector whose extent has a name of its own: it is that of the copies, or 1, and then only they know it."""
    n, h, w = rng.choice(["N", 1, 2]), rng.choice(["H", 5]), rng.choice(["W", 6])
    image = net.input(n, 3, h, w)
    channels = rng.choice([1, 2, 4])
    mixed = spread(net, rng, net.input(rng.choice([n, 1]), channels, 1, 1), image, n)
    axis = rng.choice([0, 2, 3])
    for name in rng.choice([["U"], ["U"], ["U", "V"]]):
        shape = [1, rng.choice([1, channels]), 1, 1]
        shape[axis] = name
        operands = [mixed, net.input(*shape)]
        rng.shuffle(operands)
        mixed = net.node(rng.choice(["Add", "Sub", "Mul", "Max"]), *operands)
        if rng.random() < 0.3:
            mixed = net.node(rng.choice(["Relu", "Tanh"]), mixed)
    beside = rng.random() < 0.7
    joined = net.node("Concat", image, mixed, axis=1) if beside else mixed
    y, _ = _layer(net, rng, joined, channels + 3 * beside, 2)
    net.output(y, rank=4)
    extent = (n, 3, h, w)[axis]

    def complete(sizes: dict[str, int]) -> None:
        for name in ("U", "V"):
            sizes[name] = rng.choice([1, sizes[extent] if isinstance(extent, str) else extent])

    return complete


def _lifted(net: Net, vector: str) -> str:
    return net.with_axes("Unsqueeze", vector, 2, 3)


def _layer(net, rng, x, channels, spatial) -> tuple[str, int]:
    outputs = rng.choice([2, 3, 4])
    kernel = rng.choice([1, 3, 3])
    attributes = {"pads": [kernel // 2] * 4}
    weight = net.random(outputs, channels, kernel, kernel)
    if rng.random() < 0.1 and net.dtype == np.float32:
        weight = _dequantized(net, (outputs, channels, kernel, kernel))
    bias = [net.random(outputs)] if rng.random() < 0.6 else []
    y = net.node("Conv", x, weight, *bias, **attributes)
    if rng.random() < 0.3:
        statistics = [net.random(outputs) for _ in range(3)]
        variance = net.constant((net.values.random(outputs) + 0.5).astype(net.dtype))
        y = net.node("BatchNormalization", y, *statistics, variance, epsilon=1e-3)
    if rng.random() < 0.6:
        y = net.node(rng.choice(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu"]), y)
    return y, outputs


def _quantized(net: Net, x: str) -> str:
    scale, zero = net.constant(np.float32(0.05)), net.constant(np.uint8(120))
    return net.node("DequantizeLinear", net.node("QuantizeLinear", x, scale, zero), scale, zero)


def _dequantized(net: Net, shape) -> str:
    weight = net.constant(net.values.integers(-100, 100, shape).astype(np.int8))
    return net.node("DequantizeLinear", weight, net.constant(np.float32(0.02)), net.constant(np.int8(0)))


def spread(net: Net, rng: Random, vector: str, like: str, batch) -> str:
    """A tensor [N or 1, C, 1, 1] over the image of another one, by one of the spellings of exporters."""
    shape = net.node("Shape", like)
    spatial = net.node("Slice", shape, net.ints(2), net.ints(4), net.ints(0))
    forms = ["expand", "expand", "guarded", "tile", "times one", "plus zero", "zeros of the image", "resize", "copies"]
    form = rng.choice(forms)
    if form == "tile" and batch == 1:
        return net.node("Tile", vector, net.node("Concat", net.ints(1, 1), spatial, axis=0))
    if form == "guarded":
        wanted = net.node("Concat", net.node("Slice", shape, net.ints(0), net.ints(1), net.ints(0)), net.ints(-1), spatial,
                          axis=0)  # fmt: skip
        ones = net.node("ConstantOfShape", net.ints(4), value=onnx.numpy_helper.from_array(np.ones(1, np.int64)))
        return net.node("Expand", vector, net.node("Where", net.node("Equal", wanted, net.ints(-1)), ones, wanted))
    one = net.node("Slice", like, net.ints(0), net.ints(1), net.ints(1))  # [N, 1, H, W]
    if form in ("times one", "plus zero"):
        value = float(form == "times one")
        filler = onnx.numpy_helper.from_array(np.array([value], net.dtype))
        constant = net.node("ConstantOfShape", net.node("Shape", one), value=filler)
        return net.node("Mul" if value else "Add", vector, constant)
    if form == "zeros of the image":
        return net.node("Add", net.node("Mul", one, net.scalar(0)), vector)
    if form == "resize" and batch == 1:
        sizes = net.node("Concat", net.node("Shape", vector), spatial, axis=0)
        sizes = net.node("Gather", sizes, net.ints(0, 1, 4, 5))
        empty = net.constant(np.zeros(0, np.float32)) if net.opset < 13 else ""
        region = net.constant(np.zeros(0, net.dtype if net.dtype != np.float16 else np.float32)) if empty else ""
        return net.node("Resize", vector, region, empty, sizes, mode="nearest")
    if form == "copies":
        wide = net.node("Concat", vector, vector, vector, axis=2)
        first = net.node("Slice", wide, net.ints(0), net.ints(1), net.ints(2))
        return _expanded(net, first, shape, spatial)
    return _expanded(net, vector, shape, spatial)


def _expanded(net: Net, vector: str, shape: str, spatial: str) -> str:
    """Expand over batch and image; the channels stay."""
    samples = net.node("Slice", shape, net.ints(0), net.ints(1), net.ints(0))
    return net.node("Expand", vector, net.node("Concat", samples, net.ints(1), spatial, axis=0))


def plain(net: SharingNet, rng: Random) -> None:
    """A small network with nothing to find: it has to stay as it is, or nearly."""
    n, channels = _batch(rng), rng.choice([2, 3, 4])
    x = net.input(n, channels, rng.choice(["H", 7]), rng.choice(["W", 9]))
    for _ in range(rng.choice([1, 2, 4])):
        kind = rng.choice(["conv", "pool", "norm", "depthwise", "softmax"])
        if kind == "conv":
            x, channels = _layer(net, rng, x, channels, 2)
        elif kind == "depthwise":
            x = net.node("Conv", x, net.random(channels, 1, 3, 3), group=channels, pads=[1, 1, 1, 1])
            x = net.node("Tanh", x)
        elif kind == "pool":
            x = net.node(rng.choice(["MaxPool", "AveragePool"]), x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "norm":
            x = net.node("InstanceNormalization", x, net.random(channels), net.random(channels), epsilon=0.1)
        else:
            x = net.node("Softmax", x, axis=1) if net.opset >= 13 else net.node("Tanh", x)
    if rng.random() < 0.5:
        x = net.node("Flatten", net.node("GlobalAveragePool", x))
        x = net.node("Gemm", x, net.random(channels, 2), net.random(2))
        net.output(x, rank=2)
    else:
        net.output(x, rank=4)


SCENES: dict[str, tuple[int, Callable[[SharingNet, Random], Complete | None]]] = {
    "tiles": (6, tiles),
    "merged-axes": (3, merged_axes),
    "network": (4, network),
    "broadcasts": (3, broadcasts),
    "windows": (5, windows),
    "neighbours": (3, neighbours),
    "distances": (2, distances),
    "partners": (1, partners),
    "plain": (1, plain),
}
"""Name -> (how often, relative to others, function)."""
ANY_TYPE = ("tiles", "merged-axes", "broadcasts", "distances")
"""Scenes of which ONNX Runtime has every operator in double."""
