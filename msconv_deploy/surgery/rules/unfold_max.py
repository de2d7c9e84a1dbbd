"""`unfold-max`: the maximum over windows is MaxPool, the mean over windows is AveragePool.

    max over u, v of x[n, c, i*s + u*d - p, j*s + v*d - p]  =  maxpool(pad(x, 0))[n, c, i, j]

for ReduceMax and ReduceMean, in one or in several steps, over all taps and nothing else. Windows hold zeros outside the image,
where MaxPool alone would see minus infinity: so a Pad with zeros stays in front of an unpadded MaxPool. AveragePool counts its
padding as zeros (``count_include_pad``) where it is the same on both sides and narrower than the kernel, else it is a Pad too.
Such a pooling says ``auto_pad="VALID"``: ONNX Runtime (seen in 1.31, at its default optimizations) makes the zeros of a Pad
the padding of the pooling behind it otherwise, which is minus infinity again, or is refused where the kernel is not wider.

Valid for float32 and float16 with the channels kept; a mean over dilated windows from opset 19, which gave AveragePool its
dilations. Saves the windows, kh*kw times as large as the image at stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.element_types import CONVOLVED, element_type
from msconv_deploy.surgery.engine.products import reduced_axes, reduced_result
from msconv_deploy.surgery.engine.symbols import operator
from msconv_deploy.surgery.engine.windows import Reading, Use, WindowFinder, Windows, WindowWriter

ID = "unfold-max"
LOWERING = "pooling"

_POOLS = {"ReduceMax": "MaxPool", "ReduceMean": "AveragePool"}
_DILATED_MEAN = 19
"""Opset from which AveragePool has dilations."""


@dataclass(frozen=True, eq=False)
class Match:
    """A maximum or mean over windows.

    Attributes:
        node: the last of the reductions.
        windows: what the first one reads.
    """

    node: gs.Node
    windows: Windows


def match(node: gs.Node, finder: WindowFinder, opset: int) -> Match | Refusal | None:
    """The maximum or mean at a node, why it is left, or None if it is not over windows."""
    op = operator(node)
    readers = node.outputs[0].outputs if op in _POOLS else []
    if op not in _POOLS or (len(readers) == 1 and operator(readers[0]) == op):
        return None  # the last of several reductions stands for all
    reading = _reading(node, finder)
    windows = None if reading is None else finder.find(reading)
    if windows is None or isinstance(windows, Refusal):
        return windows
    name = (str(node.name),)
    if windows.channel is not None:
        return Refusal("it reduces whole axes beside the windows", name)
    found = element_type(windows.source)
    if found is None or found not in CONVOLVED:
        what = "its element type is not known" if found is None else f"not every runtime has pooling in {found.name}"
        return Refusal(what, name)
    if op == "ReduceMean" and opset < _DILATED_MEAN and any(a.dilation > 1 for a in windows.axes):
        return Refusal(f"a mean over dilated windows needs opset {_DILATED_MEAN}", name)
    return Match(node, windows)


def _reading(node: gs.Node, finder: WindowFinder) -> Reading | None:
    """The reductions of one kind that end at a node, as one."""
    chain = [node]
    while (above := chain[-1].inputs[0]).inputs and operator(above.inputs[0]) == operator(node):
        chain.append(above.inputs[0])
    operand = chain[-1].inputs[0]
    shape = finder.base.shape(operand)
    if shape is None or isinstance(operand, gs.Constant):
        return None
    left: tuple[int | None, ...] = tuple(range(len(shape)))
    summed = set[int]()
    for step in reversed(chain):
        axes = reduced_axes(step, finder.base, len(left))
        if axes is None:
            return None
        summed.update(a for i in axes if (a := left[i]) is not None)
        left = reduced_result(step, axes, left)
    uses: tuple[Use, ...] = tuple("summed" if a in summed else "kept" for a in range(len(shape)))
    return Reading(node, operand, uses, left, pooled=True)


def rewrite(builder: GraphBuilder, found: Match) -> None:
    """The pooling, between the layouts of before; into a builder."""
    windows = found.windows
    writer = WindowWriter(builder, windows, pooled=True)
    x = writer.source()
    attributes: dict[str, Any] = dict(windows.pool_attributes())
    # A mean may count zeros around the image itself; ONNX Runtime 1.23 does so rightly only where there are as many behind as
    # before, and no version where they are as many as the kernel has taps.
    within = all(a.pad_before == a.pad_after < a.kernel for a in windows.axes)
    if windows.padded and found.node.op == "ReduceMean" and within:
        attributes.update(pads=windows.pads, count_include_pad=1)
    else:
        x = builder.pad(x, "constant", len(windows.spatial) + 2, windows.pads_by_axis)
        attributes.update(auto_pad="VALID")
    writer.finish(_POOLS[found.node.op], x, **attributes)
