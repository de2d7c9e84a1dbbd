"""Random models with tiled operands, chains, concats and contractions; most of them are sites, some must be refused.

``python -m tests.fuzz graphs`` puts the same parts, and others, into larger and odder models.

Everything is drawn from a `random.Random`, so that the same code runs under hypothesis (which shrinks what it draws) and
from plain seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import onnx
import onnxruntime
import pytest

from msconv_deploy.runtimes.opsets import newest_onnxruntime_opset
from tests.surgery.graphs import Net

OPSETS = tuple(opset for opset in (11, 13, 17, 18, 21, 26, 28) if opset <= newest_onnxruntime_opset())

defined_by_onnxruntime = pytest.mark.skipif(
    tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24),
    reason="this ONNX Runtime computes garbage where newer ones refuse (reflect padding beyond the image, output padding "
    "beyond the stride), so that two spellings of one model need not agree",
)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph with its extents (None where an operator made one that has no name) and its channel axis."""

    name: str
    dims: tuple
    channel: int

    @property
    def channels(self) -> int:
        return self.dims[self.channel]


@dataclass
class Case:
    model: onnx.ModelProto
    sizes: list[dict[str, int]]


def random_case(rng: Random) -> Case:
    return Builder(rng).build()


class Builder:
    """One part of a model: tiled operands, a concat of them, and contractions of it.

    Args:
        rng: decides everything.
        net: the model that gets the part; a new one if it is None.
    """

    def __init__(self, rng: Random, net: Net | None = None) -> None:
        self.rng = rng
        self.kind = rng.choice(["Conv", "Conv", "Conv", "ConvTranspose", "MatMul", "Gemm"])
        if net is not None and net.dtype == np.float64 and self.kind.startswith("Conv"):
            self.kind = "MatMul"  # ONNX Runtime has no convolutions in double
        if net is None:
            dtypes = [np.float32] * 6 + [np.float16] + ([np.float64] if self.kind in ("MatMul", "Gemm") else [])
            net = Net(rng.choice(OPSETS), rng.choice(dtypes), rng.randrange(1000))
        self.net = net
        self.conv = self.kind.startswith("Conv")
        if self.conv:
            others = ["N", *"HWD"[: rng.choice([1, 2, 2, 2, 3])]]
        else:
            others = [["N"], ["N", "T"], ["N", "T", "S"]][rng.choice([0, 1, 1, 2])]
        self.dynamic = {a: rng.random() < 0.5 for a in others}
        self.extents = {a: rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9] if a != "N" else [1, 2, 3]) for a in others}
        self.axes = others

    # -- drawing ---------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def dim(self, axis: str):
        return axis if self.dynamic[axis] else self.extents[axis]

    def frame(self, channels: int) -> list:
        """Extents of a full tensor."""
        if self.conv:
            return [self.dim("N"), channels, *(self.dim(a) for a in self.axes[1:])]
        return [*(self.dim(a) for a in self.axes), channels]

    @property
    def channel(self) -> int:
        return 1 if self.conv else len(self.axes)

    def build(self) -> Case:
        self.fill()
        model = self.net.model(producer_name="random")
        for key in ("author", "note"):
            model.metadata_props.add(key=key, value="kept")
        return Case(model, self.sizes())

    def sizes(self) -> list[dict[str, int]]:
        sizes = [{a: self.rng.choice([1, 1, 2, 3, 4, 5, 7]) for a in self.axes} for _ in range(3)]
        sizes.append({a: 8 + i for i, a in enumerate(self.axes)})
        for assignment in sizes:
            self.complete(assignment)
        return sizes

    def complete(self, assignment: dict[str, int]) -> None:
        """Give the extents that follow from others."""
        assignment["B"] = self.rng.choice([1, assignment["N"]])

    def fill(self) -> None:
        """Add the nodes and outputs."""
        rng, net = self.rng, self.net
        self.reference = net.input(*self.frame(2))  # has every extent
        values = [self.operand() for _ in range(rng.choice([1, 2, 2, 2, 3, 4]))]
        if all(v.name == self.reference for v in values):
            values.append(self.tile())
        joined = self.concat(values)
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            joined = self.chained(joined)
        for _ in range(rng.choice([1, 1, 1, 2])):
            self.contract(joined)
        if self.chance(0.15):
            net.output(joined.name, rank=len(joined.dims))
        if self.chance(0.2):  # an operand is shared with another concat
            other = self.concat([values[-1], self.operand()])
            if other.name != joined.name:
                self.contract(other)

    # -- operands --------------------------------------------------------------------------------------------------

    def operand(self) -> Value:
        if self.chance(0.35):
            channels = self.rng.choice([1, 2, 3])
            value = Value(self.net.input(*self.frame(channels)), tuple(self.frame(channels)), self.channel)
        else:
            value = self.tile()
        for _ in range(self.rng.choice([0, 0, 0, 1, 1, 2, 3])):
            value = self.chained(value)
        if self.chance(0.05):
            self.net.output(value.name, rank=len(value.dims))
        return value

    def tile(self) -> Value:
        rng = self.rng
        channels = rng.choice([1, 1, 2, 3, 4])
        full = self.frame(channels)
        others = [i for i in range(len(full)) if i != self.channel]
        copied = [i for i in others if self.chance(0.65)] or [rng.choice(others)]
        if self.chance(0.1):
            copied.append(self.channel)
        small = [1 if i in copied else d for i, d in enumerate(full)]
        methods = [self.expand, self.expand, self.expand_low, self.tiled, self.repeat, self.ones, self.resize]
        methods += [self.plane, self.lookup, self.added, self.coordinates]
        name = rng.choice(methods)(small, full, copied)
        if name is None:
            name = self.expand(small, full, copied)
        value = Value(name, tuple(full), self.channel)
        self.net_known = value
        return value

    def core(self, dims) -> str:
        if all(isinstance(d, int) for d in dims) and self.chance(0.2):
            return self.net.random(*dims)
        return self.net.input(*dims)

    def target(self, full) -> str:
        """A shape tensor, by several spellings."""
        net = self.net
        shape = net.shape(full)
        if self.chance(0.2):  # the legacy exporter's guard
            ones = net.node("ConstantOfShape", net.ints(len(full)), value=_tensor(np.ones(1, np.int64)))
            minus = net.node("Mul", ones, net.constant(np.array(-1, np.int64)))
            shape = net.node("Where", net.node("Equal", shape, minus), ones, shape)
        if self.chance(0.15):
            shape = net.node("Cast", net.node("Cast", shape, to=onnx.TensorProto.INT32), to=onnx.TensorProto.INT64)
        return shape

    def expand(self, small, full, copied) -> str:
        if small[0] == "N" and self.chance(0.1):
            small = ["B", *small[1:]]  # a batch that is 1 or N, which only the run shows
        return self.net.node("Expand", self.core(small), self.target(full))

    def expand_low(self, small, full, copied) -> str | None:
        """From a lower rank; or of a shape that is 1 where the core has its own extent."""
        lead = 0
        while lead in copied:
            lead += 1
        if lead and lead < len(small):
            return self.net.node("Expand", self.core(small[lead:]), self.target(full))
        shape = [1 if i not in copied else d for i, d in enumerate(full)]
        return self.net.node("Expand", self.core(small), self.target(shape))

    def tiled(self, small, full, copied) -> str:
        repeats = [d if i in copied else 1 for i, d in enumerate(full)]
        return self.net.node("Tile", self.core(small), self.target(repeats))

    def repeat(self, small, full, copied) -> str:
        """torch's repeat: Expand by ones, which may raise the rank, then Tile."""
        lead = 0
        while lead in copied:
            lead += 1
        core = self.core(small[lead:]) if lead < len(small) else self.core(small)
        grown = self.net.node("Expand", core, self.net.ints(*[1] * len(full)))
        repeats = [d if i in copied else 1 for i, d in enumerate(full)]
        return self.net.node("Tile", grown, self.target(repeats))

    def ones(self, small, full, copied) -> str:
        """Arithmetic with a tensor of one value, from ConstantOfShape or from the file."""
        value = self.rng.choice([0.0, 1.0])
        if all(isinstance(d, int) for d in full) and self.chance(0.5):
            constant = self.net.constant(np.full(full, value, self.net.dtype))
        else:
            filler = _tensor(np.array([value], self.net.dtype))
            constant = self.net.node("ConstantOfShape", self.net.shape(full), value=filler)
        pair = [constant, self.core(small)]
        self.rng.shuffle(pair)
        return self.net.node("Mul" if value else "Add", *pair)

    def added(self, small, full, copied) -> str:
        """Two broadcast operands that lack different axes."""
        if len(copied) < 2:
            return self.expand(small, full, copied)
        at = self.rng.choice(copied)
        first = [d if i == at else 1 for i, d in enumerate(full)]
        second = [1 if i == at else d for i, d in enumerate(full)]
        return self.net.node(self.rng.choice(["Add", "Mul", "Sub"]), self.core(first), self.core(second))

    def resize(self, small, full, copied) -> str | None:
        if not self.conv or min(copied) < 2 or len(full) != 4:
            return None
        mode = self.rng.choice(["nearest", "linear", "cubic"])
        transform = self.rng.choice(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
        sizes = self.target(full)
        dtype = self.net.dtype if self.net.dtype != np.float16 else np.float32
        empty = self.net.constant(np.zeros(0, dtype)) if self.net.opset < 13 else ""
        scales = self.net.constant(np.zeros(0, np.float32)) if self.net.opset < 13 else ""
        attributes = {"mode": mode, "coordinate_transformation_mode": transform}
        return self.net.node("Resize", self.core(small), empty, scales, sizes, **attributes)

    def plane(self, small, full, copied) -> str | None:
        if not all(isinstance(d, int) for d in full):
            return None
        core = self.net.values.standard_normal(small).astype(self.net.dtype)
        array = np.broadcast_to(core, full)
        if self.chance(0.4):
            value = onnx.numpy_helper.from_array(np.ascontiguousarray(array))
            return self.net.node("Constant", value=value)
        return self.net.constant(np.ascontiguousarray(array))

    def lookup(self, small, full, copied) -> str | None:
        """Label planes: a table of uniform slices, looked up per sample."""
        if not all(isinstance(d, int) for d in full[1:]) or 0 in copied:
            return None
        table = self.net.values.standard_normal((3, *small[1:])).astype(self.net.dtype)
        planes = self.net.constant(np.ascontiguousarray(np.broadcast_to(table, (3, *full[1:]))))
        return self.net.node("Gather", planes, self.net.input(full[0], dtype=np.int64), axis=0)

    def coordinates(self, small, full, copied) -> str | None:
        """One constant whose channels are uniform along different axes."""
        if not all(isinstance(d, int) for d in full):
            return None
        array = np.zeros(full, self.net.dtype)
        others = [i for i in range(len(full)) if i != self.channel]
        for c in range(full[self.channel]):
            at = others[c % len(others)]
            index = [slice(None)] * len(full)
            index[self.channel] = c
            shape = [full[i] if i == at else 1 for i in range(len(full)) if i != self.channel]
            array[tuple(index)] = np.linspace(-1, 1, full[at]).reshape(shape)
        return self.net.constant(array)

    # -- chains ----------------------------------------------------------------------------------------------------

    def chained(self, x: Value) -> Value:
        steps = [self.unary] * 4 + [self.per_channel] * 2 + [
            self.normalized, self.cast, self.transposed, self.squeezed, self.reshaped, self.noop, self.selected,
            self.sliced, self.padded, self.padded, self.prelu, self.mixed, self.unshuffled, self.split, self.elementwise,
        ]  # fmt: skip
        return self.rng.choice(steps)(x) or x

    def made(self, x: Value, name: str) -> Value:
        return replace(x, name=name)

    def unary(self, x: Value) -> Value:
        ops = [
            "Relu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Neg",
            "Abs",
            "Identity",
            "Sin",
            "Softplus",
            "Elu",
            "Dropout",
            "Clip",
        ]
        op = self.rng.choice(ops)
        if op == "Clip":
            low = self.net.scalar(-0.5) if self.chance(0.7) else ""
            high = self.net.scalar(0.7) if self.chance(0.7) else ""
            inputs = [x.name, low, high] if high else [x.name, low] if low else [x.name]
            return self.made(x, self.net.node("Clip", *inputs))
        attributes = {"alpha": 0.3} if op in ("LeakyRelu", "Elu") else {}
        return self.made(x, self.net.node(op, x.name, **attributes))

    def vector(self, x: Value) -> str:
        shape = [1] * len(x.dims)
        shape[x.channel] = x.channels
        shape = shape[self.rng.choice([0, x.channel]) :]
        dims = [*shape]
        return self.net.random(*dims) if self.chance(0.7) else self.net.input(*dims)

    def per_channel(self, x: Value) -> Value:
        pair = [x.name, self.vector(x) if self.chance(0.7) else self.net.scalar(1.5)]
        self.rng.shuffle(pair)
        return self.made(x, self.net.node(self.rng.choice(["Add", "Mul", "Sub", "Max"]), *pair))

    def normalized(self, x: Value) -> Value | None:
        if x.channel != 1 or len(x.dims) < 2:
            return None
        c, dtype = x.channels, self.net.dtype
        variance = self.net.constant((self.net.values.random(c) + 0.5).astype(dtype))
        parameters = [self.net.random(c) for _ in range(3)]
        return self.made(x, self.net.node("BatchNormalization", x.name, *parameters, variance, epsilon=1e-3))

    def cast(self, x: Value) -> Value:
        y = self.net.node("Cast", x.name, to=onnx.TensorProto.DOUBLE)
        kind = onnx.helper.np_dtype_to_tensor_dtype(self.net.dtype)
        return self.made(x, self.net.node("Cast", y, to=kind))

    def transposed(self, x: Value) -> Value:
        perm = list(range(len(x.dims)))
        self.rng.shuffle(perm)
        y = Value(self.net.node("Transpose", x.name, perm=perm), tuple(x.dims[p] for p in perm), perm.index(x.channel))
        if self.chance(0.6):
            y = self.rng.choice([self.unary, self.per_channel, self.sliced, self.squeezed, self.reshaped])(y) or y
        back = [perm.index(i) for i in range(len(perm))]
        name = self.net.node("Transpose", y.name, perm=back)
        return Value(name, tuple(y.dims[b] for b in back), x.channel)

    def squeezed(self, x: Value) -> Value:
        at = self.rng.randrange(len(x.dims) + 1)
        y = self.net.with_axes("Unsqueeze", x.name, at)
        if self.chance(0.4):
            y = self.net.node("Relu", y)
        return self.made(x, self.net.with_axes("Squeeze", y, at if self.chance(0.5) else at - len(x.dims) - 1))

    def reshaped(self, x: Value) -> Value:
        """A Reshape that changes nothing, or one that merges the axes behind or before and one that splits them."""
        rank = len(x.dims)
        if self.chance(0.3):
            return self.made(x, self.net.node("Reshape", x.name, self.net.ints(*[0] * rank)))
        if any(d is None for d in x.dims):
            return x
        cut = self.rng.randrange(rank)
        merged = [*x.dims[:cut], -1] if self.chance(0.5) else [-1, *x.dims[cut + 1 :]]
        y = self.net.node("Reshape", x.name, self.net.shape(merged))
        if self.chance(0.5):
            y = self.net.node("Sigmoid", y)
        return self.made(x, self.net.node("Reshape", y, self.net.shape(list(x.dims))))

    def noop(self, x: Value) -> Value:
        rank = len(x.dims)
        choice = self.rng.randrange(4)
        if choice == 0:
            pads = self.net.ints(*[0] * (2 * rank))
            return self.made(
                x, self.net.node("Pad", x.name, pads, mode=self.rng.choice(["constant", "reflect", "edge"]))
            )
        if choice == 1:
            axis = self.rng.randrange(rank)
            end = self.rng.choice([2**31 - 1, 2**63 - 1])
            return self.made(x, self.net.node("Slice", x.name, *[self.net.ints(v) for v in (0, end, axis, 1)]))
        if choice == 2:
            return self.made(x, self.net.node("Expand", x.name, self.net.ints(*[1] * rank)))
        return self.made(x, self.net.node("Tile", x.name, self.net.ints(*[1] * rank)))

    def selected(self, x: Value) -> Value:
        shape = [1] * len(x.dims)
        if self.chance(0.5):
            shape[x.channel] = x.channels
        condition = self.net.constant(self.net.values.random(shape) < 0.5)
        pair = [x.name, self.net.scalar(0.25)]
        self.rng.shuffle(pair)
        return self.made(x, self.net.node("Where", condition, *pair))

    def sliced(self, x: Value) -> Value | None:
        axis = self.rng.randrange(len(x.dims))
        if axis == x.channel:
            if x.channels < 2:
                return None
            start = self.rng.randrange(x.channels - 1)
            stop = self.rng.randrange(start + 1, x.channels + 1)
            cut = (start, stop, axis, 1)
            dims = tuple(stop - start if i == axis else d for i, d in enumerate(x.dims))
        elif self.chance(0.5) or axis == 0 or not self.conv:
            return None
        else:
            cut = self.rng.choice([(1, 2**31 - 1, axis, 1), (0, -1, axis, 1), (0, 2**31 - 1, axis, 2)])
            dims = tuple(None if i == axis else d for i, d in enumerate(x.dims))
        name = self.net.node("Slice", x.name, *[self.net.ints(v) for v in cut])
        return Value(name, dims, x.channel)

    def padded(self, x: Value) -> Value | None:
        """Pads of all modes, cropped again half of the time so that the extents stay."""
        if not self.conv or x.channel != 1 or len(x.dims) < 3:
            return None
        rank = len(x.dims)
        mode = self.rng.choice(["constant", "reflect", "edge"])
        before = [0, 0] + [self.rng.choice([0, 0, 1, 2]) for _ in range(rank - 2)]
        after = [0, 0] + [self.rng.choice([0, 0, 1, 2]) for _ in range(rank - 2)]
        inputs = [x.name, self.net.ints(*before, *after)]
        if mode == "constant" and self.chance(0.5):
            inputs.append(self.net.scalar(self.rng.choice([0.0, 0.5])))
        y = self.net.node("Pad", *inputs, mode=mode)
        if self.chance(0.3):
            y = self.net.node(self.rng.choice(["Relu", "Sigmoid"]), y)
        crop = [(b, -a if a else 2**31 - 1) for b, a in zip(before, after, strict=True)]
        if self.chance(0.5):
            axes = range(2, rank)
            parts = zip(*((crop[a][0], crop[a][1], a, 1) for a in axes), strict=True)
            return self.made(x, self.net.node("Slice", y, *[self.net.ints(*p) for p in parts]))
        changed = [b + a for b, a in zip(before, after, strict=True)]
        dims = tuple(
            d if not c or d is None else d + c if isinstance(d, int) else None
            for d, c in zip(x.dims, changed, strict=True)
        )
        return Value(y, dims, x.channel)

    def prelu(self, x: Value) -> Value:
        shape = [1] * len(x.dims)
        if self.chance(0.7):
            shape[x.channel] = x.channels
        return self.made(x, self.net.node("PRelu", x.name, self.net.random(*shape[self.rng.choice([0, x.channel]) :])))

    def mixed(self, x: Value) -> Value | None:
        """With a further tensor that has a part of the axes."""
        if any(d is None for d in x.dims) or not set(x.dims) <= {*map(self.dim, self.axes), x.channels, 1}:
            return None
        dims = [d if self.chance(0.4) else 1 for d in x.dims]
        return self.made(x, self.net.node(self.rng.choice(["Add", "Mul"]), x.name, self.core(dims)))

    def elementwise(self, x: Value) -> Value | None:
        """x * sigmoid(x)."""
        gate = self.net.node("Sigmoid", x.name)
        return self.made(x, self.net.node("Mul", x.name, gate))

    def unshuffled(self, x: Value) -> Value | None:
        """Pixel-unshuffle by 2 where the extents are known and even."""
        if not self.conv or x.channel != 1 or len(x.dims) != 4:
            return None
        n, c, h, w = x.dims
        if not all(isinstance(d, int) and d % 2 == 0 for d in (h, w)) or n is None:
            return None
        y = self.net.node("Reshape", x.name, self.net.ints(0, c, h // 2, 2, w // 2, 2))
        y = self.net.node("Transpose", y, perm=[0, 1, 3, 5, 2, 4])
        y = self.net.node("Reshape", y, self.net.ints(0, c * 4, h // 2, w // 2))
        return Value(y, (n, c * 4, h // 2, w // 2), 1)

    def split(self, x: Value) -> Value | None:
        if x.channels < 2:
            return None
        sizes = [1, x.channels - 1]
        if self.net.opset < 13:
            parts = self.net.node("Split", x.name, outputs=2, axis=x.channel, split=sizes)
        else:
            parts = self.net.node("Split", x.name, self.net.ints(*sizes), outputs=2, axis=x.channel)
        if self.chance(0.5):
            return self.made(x, self.net.node("Concat", *reversed(parts), axis=x.channel))
        at = self.rng.randrange(2)
        dims = tuple(sizes[at] if i == x.channel else d for i, d in enumerate(x.dims))
        return Value(parts[at], dims, x.channel)

    # -- joining and contracting -----------------------------------------------------------------------------------

    def concat(self, values: list[Value]) -> Value:
        """Concatenate what has the same extents; perhaps nested, perhaps channels last."""
        first = values[0]
        fitting = [v for v in values if _others(v) == _others(first)]
        if len(fitting) == 1:
            return first
        if len(fitting) > 2 and self.chance(0.4):
            fitting = [self.concat(fitting[:2]), *fitting[2:]]
        dims = list(first.dims)
        dims[first.channel] = sum(v.channels for v in fitting)
        if self.conv and self.chance(0.15):
            perm = [0, *range(2, len(dims)), 1]
            parts = [self.net.node("Transpose", v.name, perm=perm) for v in fitting]
            y = self.net.node("Concat", *parts, axis=-1)
            name = self.net.node("Transpose", y, perm=[0, len(dims) - 1, *range(1, len(dims) - 1)])
        else:
            axis = first.channel - (len(dims) if self.chance(0.2) else 0)
            name = self.net.node("Concat", *(v.name for v in fitting), axis=axis)
        return Value(name, tuple(dims), first.channel)

    def contract(self, x: Value) -> None:
        y = getattr(self, f"contract_{self.kind.lower()}")(x)
        if self.chance(0.3):
            y = self.net.node("Relu", y)
        self.net.output(y, rank=2 if self.kind == "Gemm" else len(x.dims))

    def geometry(self, x: Value, kernels) -> tuple[int, dict, list[int]]:
        rng, spatial = self.rng, len(x.dims) - 2
        kernel = [rng.choice(kernels) for _ in range(spatial)]
        group = rng.choice([g for g in range(1, x.channels + 1) if x.channels % g == 0]) if self.chance(0.35) else 1
        attributes = {
            "strides": [rng.choice([1, 1, 1, 2, 3]) for _ in range(spatial)],
            "dilations": [rng.choice([1, 1, 1, 2]) for _ in range(spatial)],
            "group": group,
        }
        return group, attributes, kernel

    def contract_conv(self, x: Value) -> str:
        rng, spatial = self.rng, len(x.dims) - 2
        group, attributes, kernel = self.geometry(x, [1, 1, 2, 3, 3, 4])
        source = x.name
        if self.chance(0.3):
            attributes["auto_pad"] = rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
            if attributes["auto_pad"] != "VALID" and self.chance(0.7):
                attributes["strides"] = [1] * spatial
            attributes["dilations"] = [1] * spatial
        elif self.chance(0.75):
            attributes["pads"] = [rng.choice([0, 1, 1, 2, 3]) for _ in range(2 * spatial)]
            if self.chance(0.2):
                pads = self.net.ints(0, 0, *attributes["pads"][:spatial], 0, 0, *attributes["pads"][spatial:])
                source = self.net.node("Pad", source, pads)
                attributes["pads"] = [rng.choice([0, 0, 1]) for _ in range(2 * spatial)]
        if self.chance(0.4):
            attributes["kernel_shape"] = kernel
        outputs = group * rng.choice([1, 2, 3])
        weight = self.weight(outputs, x.channels // group, *kernel)
        bias = [self.net.random(outputs)] if self.chance(0.5) else []
        return self.net.node("Conv", source, weight, *bias, **attributes)

    def weight(self, *shape) -> str:
        if self.chance(0.03):
            return self.net.constant(np.zeros(shape, self.net.dtype))
        weight = self.net.random(*shape)
        return self.net.node("Identity", weight) if self.chance(0.1) else weight

    def contract_convtranspose(self, x: Value) -> str:
        rng, spatial = self.rng, len(x.dims) - 2
        group, attributes, kernel = self.geometry(x, [1, 2, 3, 4])
        if self.chance(0.6):
            attributes["pads"] = [rng.choice([0, 0, 1, 2]) for _ in range(2 * spatial)]
        if self.chance(0.4):
            bound = [max(s, d) for s, d in zip(attributes["strides"], attributes["dilations"], strict=True)]
            attributes["output_padding"] = [rng.randrange(b) for b in bound]
        if self.chance(0.4):
            attributes["kernel_shape"] = kernel
        outputs = rng.choice([1, 2, 3])
        weight = self.weight(x.channels, outputs, *kernel)
        bias = [self.net.random(outputs * group)] if self.chance(0.5) else []
        return self.net.node("ConvTranspose", x.name, weight, *bias, **attributes)

    def contract_matmul(self, x: Value) -> str:
        y = self.net.node("MatMul", x.name, self.weight(x.channels, 3))
        return self.net.node("Add", y, self.net.random(3)) if self.chance(0.5) else y

    def contract_gemm(self, x: Value) -> str:
        rng, source = self.rng, x.name
        if len(x.dims) != 2:
            source = self.net.node("Reshape", source, self.net.ints(-1, x.channels))
        outputs, attributes = rng.choice([1, 3]), {}
        shape = (x.channels, outputs)
        if self.chance(0.5):
            attributes["transB"] = 1
            shape = shape[::-1]
        if self.chance(0.3):
            attributes["alpha"] = 0.5
        bias = [self.net.random(*rng.choice([(outputs,), (1, outputs), (1,), ()]))] if self.chance(0.6) else []
        return self.net.node("Gemm", source, self.weight(*shape), *bias, **attributes)


class MergedBuilder(Builder):
    """Parts in which several axes are merged into one before the concat: R rays of S samples as R*S rows."""

    MERGED = "M"

    def __init__(self, rng: Random, net: Net | None = None) -> None:
        super().__init__(rng, net)
        factors = ["R", "S", "T"][: rng.choice([2, 2, 2, 3])]
        if self.conv:
            self.before, self.after = [], ["H", "W"][: rng.choice([1, 1, 2])]
        else:
            around = self.kind == "MatMul" and self.chance(0.3)
            self.before, self.after = (["N"], []) if around and self.chance(0.5) else ([], ["L"] if around else [])
        self.factors = factors
        self.axes = [*self.before, *factors, *self.after]
        static = self.chance(0.35)
        self.dynamic = {a: not static and rng.random() < 0.6 for a in self.axes}
        self.extents = {a: rng.choice([1, 2, 2, 3, 4, 5] if a in factors else [1, 2, 3, 5, 8]) for a in self.axes}

    @property
    def channel(self) -> int:
        return len(self.axes) - len(self.after) if self.conv else len(self.axes)

    def frame(self, channels: int) -> list:
        dims = [self.dim(a) for a in self.axes]
        return [*dims[: self.channel], channels, *dims[self.channel :]]

    def sizes(self) -> list[dict[str, int]]:
        sizes = [{a: self.rng.choice([1, 1, 2, 3, 4]) for a in self.axes} for _ in range(3)]
        sizes.append({a: 3 + i for i, a in enumerate(self.axes)})
        for assignment in sizes:
            self.complete(assignment)
        return sizes

    def complete(self, assignment: dict[str, int]) -> None:
        merged = [assignment[f] if self.dynamic[f] else self.extents[f] for f in self.factors]
        assignment[self.MERGED] = int(np.prod(merged))
        assignment["B"] = self.rng.choice([1, assignment[self.axes[0]]])

    def fill(self) -> None:
        rng, net = self.rng, self.net
        self.reference = net.input(*self.frame(2))
        sizes = [self.dim(f) for f in self.factors]
        self.row = int(np.prod(sizes)) if all(isinstance(d, int) for d in sizes) else self.MERGED
        reference = self.merge(Value(self.reference, tuple(self.frame(2)), self.channel))
        if self.row == self.MERGED:
            net.symbols[self.MERGED] = (reference.name, len(self.before))
        values = [self.row_operand() for _ in range(rng.choice([2, 2, 3, 4]))]
        if self.chance(0.5):
            values.append(reference)
        joined = self.concat(values)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            joined = self.chained(joined)
        for _ in range(rng.choice([1, 1, 1, 2])):
            self.contract(joined)
        if self.chance(0.1):
            net.output(joined.name, rank=len(joined.dims))
        if self.chance(0.15):
            other = self.concat([values[0], self.row_operand()])
            if other.name not in (joined.name, values[0].name):
                self.contract(other)

    def mixed(self, x: Value) -> Value | None:
        return super().mixed(x) if self.MERGED not in x.dims and len(x.dims) == len(self.axes) + 1 else None

    # -- rows ------------------------------------------------------------------------------------------------------

    def row_operand(self) -> Value:
        """An operand in the merged layout."""
        spellings = [self.split_operand] * 5 + [
            self.row_input,
            self.row_plain,
            self.blocks,
            self.looked_up,
            self.other_split,
        ]
        value = self.rng.choice(spellings)() or self.split_operand()
        for _ in range(self.rng.choice([0, 0, 1, 1, 2])):
            value = self.chained(value)
        if self.chance(0.05):
            self.net.output(value.name, rank=len(value.dims))
        return value

    def row_frame(self, channels: int) -> list:
        dims = [*(self.dim(a) for a in self.before), self.row, *(self.dim(a) for a in self.after)]
        at = self.channel - len(self.factors) + 1
        return [*dims[:at], channels, *dims[at:]]

    def row_value(self, name: str, channels: int) -> Value:
        return Value(name, tuple(self.row_frame(channels)), self.channel - len(self.factors) + 1)

    def split_operand(self) -> Value:
        """Information and copies in the layout of the factors, merged."""
        value = self.tile() if self.chance(0.85) else self.factor_input()
        for _ in range(self.rng.choice([0, 0, 1])):
            longer = self.chained(value)
            if list(longer.dims) == self.frame(longer.channels):
                value = longer
        return self.merge(value)

    def factor_input(self) -> Value:
        full = self.frame(self.rng.choice([1, 2, 3]))
        return Value(self.net.input(*full), tuple(full), self.channel)

    def row_input(self) -> Value:
        """Rows that come as rows."""
        channels = self.rng.choice([1, 2, 3])
        return self.row_value(self.net.input(*self.row_frame(channels)), channels)

    def row_plain(self) -> Value:
        """Copies along the whole merged axis."""
        channels = self.rng.choice([1, 2])
        full = self.row_frame(channels)
        small = [1 if i == len(self.before) else d for i, d in enumerate(full)]
        return self.row_value(self.net.node("Expand", self.core(small), self.net.shape(full)), channels)

    def blocks(self) -> Value | None:
        """Rows that are repeated as a block: a Tile of an axis that has an extent."""
        channels, cut = self.rng.choice([1, 2, 3]), self.rng.randrange(1, len(self.factors))
        outer, inner = self.factors[:cut], self.factors[cut:]
        if len(inner) > 1 and any(self.dynamic[f] for f in inner):
            return None
        block = self.dim(inner[0]) if len(inner) == 1 else int(np.prod([self.extents[f] for f in inner]))
        small = [block if i == len(self.before) else d for i, d in enumerate(self.row_frame(channels))]
        repeats = [self.times(outer) if i == len(self.before) else self.net.ints(1) for i in range(len(small))]
        shape = self.net.node("Concat", *repeats, axis=0)
        return self.row_value(self.net.node("Tile", self.core(small), shape), channels)

    def times(self, factors) -> str:
        """A product of extents as an int64 tensor of one element."""
        product = self.net.shape([self.dim(factors[0])])
        for factor in factors[1:]:
            product = self.net.node("Mul", product, self.net.shape([self.dim(factor)]))
        return product

    def looked_up(self) -> Value | None:
        """repeat_interleave and repeat as constant indices."""
        if any(self.dynamic[f] for f in self.factors):
            return None
        first = self.extents[self.factors[0]]
        rest = int(np.prod([self.extents[f] for f in self.factors[1:]]))
        runs = self.chance(0.5)
        indices = np.repeat(np.arange(first), rest) if runs else np.tile(np.arange(rest), first)
        channels = self.rng.choice([1, 2, 3])
        at = len(self.before)
        small = [(first if runs else rest) if i == at else d for i, d in enumerate(self.row_frame(channels))]
        name = self.net.node("Gather", self.core(small), self.net.constant(indices.astype(np.int64)), axis=at)
        return self.row_value(name, channels)

    def other_split(self) -> Value | None:
        """As many rows from other factors."""
        if not isinstance(self.row, int) or not self.row:
            return None
        a = self.rng.choice([n for n in range(1, self.row + 1) if self.row % n == 0])
        channels, at = self.rng.choice([1, 2]), len(self.before)
        full = self.row_frame(channels)
        core = [1, self.row // a] if self.chance(0.5) else [a, 1]
        wide = self.net.node(
            "Expand",
            self.core([*full[:at], *core, *full[at + 1 :]]),
            self.net.shape([*full[:at], a, self.row // a, *full[at + 1 :]]),
        )
        return self.row_value(self.net.node("Reshape", wide, self.net.shape(full)), channels)

    def merge(self, x: Value) -> Value:
        """The factors merged, by several spellings."""
        at, net = len(self.before), self.net
        full = self.row_frame(x.channels)
        choice = self.rng.randrange(4)
        if choice == 0 and len(full) == 2:
            return self.row_value(net.node("Flatten", x.name, axis=len(self.factors)), x.channels)
        if choice == 1:
            parts = [self.times(self.factors) if i == at else net.shape([d]) for i, d in enumerate(full)]
            return self.row_value(net.node("Reshape", x.name, net.node("Concat", *parts, axis=0)), x.channels)
        if choice == 2 and at == 0 and len(self.factors) == 3:  # in two steps
            dims = list(x.dims)
            step = net.node("Reshape", x.name, net.shape([dims[0], -1, *dims[3:]]))
            if self.chance(0.5):
                step = net.node("Relu", step)
            return self.row_value(net.node("Reshape", step, net.shape([-1, *full[1:]])), x.channels)
        return self.row_value(
            net.node("Reshape", x.name, net.shape([-1 if i == at else d for i, d in enumerate(full)])), x.channels
        )


def random_merged_case(rng: Random) -> Case:
    """A model in which copies hide in a factor of a merged axis."""
    return MergedBuilder(rng).build()


def _others(value: Value) -> tuple:
    return tuple(d if i != value.channel else "channels" for i, d in enumerate(value.dims)), value.channel


def _tensor(array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array)
