"""Does a site's output move when its tiled operand does? If not, agreement there proves nothing.

Every uniform range of channels of every site gets an input of its own, added to the channels just before the
contraction: one value per channel, so that what was uniform stays so. One session then answers for all sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.cancellation import CheckedDistance
from msconv_deploy.validation.difference import difference
from msconv_deploy.validation.exposure import exposed, producers
from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import Inputs

_STREAM = 2_000_000  # keeps these random numbers apart from those of the inputs
_SCALES = (1.0, 100.0)  # the second one for operands of large values


@dataclass(frozen=True)
class CheckedSite:
    """What verification has to know of a rewritten contraction.

    Attributes:
        node: its name, for messages.
        output: its output tensor, of that name in the original and the rewritten model.
        channels: of its input.
        uniform: (first channel, number of channels) of each uniform segment of its input.
        contracted: the contraction's own output in the original, where ``output`` is that of arithmetic behind it which
            the rewrite took over.
        distance: of a pairwise distance, whose rewrite cancels otherwise.
    """

    node: str
    output: str
    channels: int
    uniform: Sequence[tuple[int, int]]
    contracted: str = ""
    distance: CheckedDistance | None = None

    @property
    def own_output(self) -> str:
        """What the contraction itself makes in the original."""
        return self.contracted or self.output


@dataclass(frozen=True)
class _Move:
    """An input added to a site's operand; it is zero outside some channels."""

    name: str
    site: CheckedSite
    channels: range
    shape: tuple[int, ...]
    dtype: np.dtype


def insensitive_sites(
    path: Path,
    original: onnx.ModelProto,
    graph: OnnxGraph,
    sites: Sequence[CheckedSite],
    inputs: Inputs,
    expected: Mapping[str, NDArray[Any]],
    seed: int,
) -> list[str]:
    """Outputs of the sites that some uniform segment does not move by more than rounding would.

    Args:
        path: external data lies beside it.
        original: in memory; as before afterwards.
        graph: analysis of it.
        sites: rewritten ones.
        inputs: a set that the original runs on.
        expected: what it computes for the sites' outputs then.
    """
    from msconv_deploy.runtimes.onnx_runtime import make_session

    makers = producers(original)
    moves = [move for site in sites for move in _moves(site, makers[site.own_output], expected)]
    nodes, replaced = [], []
    for move in moves:
        node = makers[move.site.own_output]
        nodes.append(helper.make_node("Add", [node.input[0], move.name], [f"{move.name}/sum"], f"{move.name}/sum"))
        replaced.append((node, node.input[0]))
        node.input[0] = f"{move.name}/sum"
    kinds = [helper.make_tensor_value_info(m.name, helper.np_dtype_to_tensor_dtype(m.dtype), m.shape) for m in moves]
    try:
        with exposed(original, expected, nodes, kinds):
            session = make_session(path, Settings(optimization="none"), original)
    finally:
        for node, tensor in reversed(replaced):
            node.input[0] = tensor
    still = {move.name: np.zeros(move.shape, move.dtype) for move in moves}
    rng = np.random.default_rng([seed, _STREAM])
    return list(
        dict.fromkeys(
            move.site.output
            for move in moves
            if not _moved(session, move, {**inputs.arrays, **still}, expected, graph, rng)
        )
    )


def _moves(site: CheckedSite, producer: onnx.NodeProto, expected: Mapping[str, NDArray[Any]]) -> list[_Move]:
    spatial = expected[site.output].ndim - 2 if producer.op_type in ("Conv", "ConvTranspose") else 0
    shape = (1, site.channels, *[1] * spatial) if spatial else (site.channels,)
    dtype = expected[site.output].dtype
    return [
        _Move(f"{site.output}/msconv_move{index}", site, range(start, start + size), shape, dtype)
        for index, (start, size) in enumerate(site.uniform)
    ]


def _moved(
    session: Any,
    move: _Move,
    feed: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    graph: OnnxGraph,
    rng: np.random.Generator,
) -> bool:
    output = move.site.output
    amount = np.zeros(move.site.channels)
    wanted = {value.name for value in session.get_inputs()}
    for scale in _SCALES:
        amount[move.channels] = scale * rng.standard_normal(len(move.channels))
        arrays = {**feed, move.name: amount.reshape(move.shape).astype(move.dtype)}
        (found,) = session.run([output], {name: array for name, array in arrays.items() if name in wanted})
        if not difference(found, expected[output]).within(graph.tolerance(output)):
            return True
    return False
