"""`unfold-matmul`: windows multiplied by a matrix of weights are a convolution.

    sum over c, u, v of W[o, c, u, v] * x[n, c, i*s + u*d - p, j*s + v*d - p]  =  conv(x, W)[n, o, i, j]

for MatMul, Gemm, Einsum and ReduceSum of a Mul, over windows that slide along one, two or three axes: unfold (im2col) and
matrix product, patch embeddings, framed signals times a basis. The bias behind the product and the transpositions and
reshapes of its result become part of the rewrite.

Valid wherever the weights are constant, float32 or float16, and one filter serves all positions. Costs the same
multiply-accumulates; saves writing and reading the windows, which are up to kh*kw times as large as the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.element_types import CONVOLVED
from msconv_deploy.surgery.engine.products import Product, describe_products, weights_by_role
from msconv_deploy.surgery.engine.windows import OUT, WindowFinder, Windows, WindowWriter

ID = "unfold-matmul"
LOWERING = "convolution"


@dataclass(frozen=True, eq=False)
class Match:
    """A product over windows.

    Attributes:
        node: the product.
        windows: what it reads.
        product: the product and its weights.
        weight: [O, C, *kernel].
    """

    node: gs.Node
    windows: Windows
    product: Product
    weight: NDArray[Any]


def match(node: gs.Node, finder: WindowFinder) -> Match | Refusal | None:
    """The product over windows at a node, why it is left, or None if it reads no windows whose taps it sums."""
    found = windows_and_weights(node, finder)
    if found is None or isinstance(found, Refusal):
        return found
    product, windows, weight = found
    if windows.weighted == windows.tapped:
        return None  # taps are kept: `unfold-channel-sum`
    if windows.weighted:
        return Refusal("it has a filter of its own for every channel or tap", (str(node.name),))
    return Match(node, windows, product, weight)


def windows_and_weights(node: gs.Node, finder: WindowFinder) -> tuple[Product, Windows, NDArray[Any]] | Refusal | None:
    """The windows that a product reads and its weights as [outputs, channels, *kernel], or why they are of no use."""
    refusal: Refusal | None = None
    for product in describe_products(node, finder.base):
        windows = finder.find(product.reading)
        if windows is None:
            continue
        if isinstance(windows, Refusal) or product.refusal is not None:
            refusal = refusal or product.refusal or (windows if isinstance(windows, Refusal) else None)
            continue
        weight = weights_by_role(product, windows, finder.base) if finder.is_fixed(product.weight) else None
        if weight is None:
            return Refusal("its weights are not constant", (str(node.name),))
        if weight.dtype not in CONVOLVED:
            return Refusal(f"not every runtime has convolutions in {weight.dtype.name}", (str(node.name),))
        return product, windows, weight
    return refusal


def rewrite(builder: GraphBuilder, found: Match) -> None:
    """The convolution, between the layouts of before; into a builder."""
    windows, weight = found.windows, found.weight
    writer = WindowWriter(builder, windows)
    operands = [writer.source(), builder.constant(weight)]
    if windows.bias is not None:
        values = np.asarray(windows.bias.values).reshape(-1)
        operands.append(builder.constant(np.broadcast_to(values, weight.shape[:1]), "bias"))
    attributes = windows.pool_attributes()
    if windows.padded:
        attributes["pads"] = windows.pads
    writer.finish("Conv", *operands, channels=(OUT,) if len(weight) > 1 else (), **attributes)
