"""Replace tile-concat-conv inside a user's network by `MSConv2d`, exactly.

The network is traced with `torch.fx`. Every `nn.Conv2d` whose input is a concatenation, along channels, of at least one
tile of a smaller tensor becomes an `MSConv2d` in tiled semantics that reads the small tensor (the *core*) itself.
Sites are found by meaning: what counts is that a value is known to be uniform along height or width, not how the
tile was written. See `nn.tile_rules` for what is known of which operation, `nn.sites` for the rewrite.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.sites import RefusedError, Rewriter, Rewritten
from msconv_deploy.nn.tile_graph import TileGraph
from msconv_deploy.nn.tracing import ExampleInputs, Leaf, trace
from msconv_deploy.ops.configuration import SOURCE_NAMES

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """One convolution that was replaced.

    Attributes:
        convolution: dotted name of the `nn.Conv2d` in the model, or of the weight that `F.conv2d` read.
        replacement: dotted name of the `MSConv2d` in the converted model; the same for an `nn.Conv2d`.
        in_channels: ``[C1, C2, C3, C4]`` of the MSConv2d.
        sources: for each source, the concatenated values (names in the traced graph) that it replaces, in order.
        notes: what to know when using or training it.
    """

    convolution: str
    replacement: str
    in_channels: tuple[int, int, int, int]
    sources: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A near-miss: a convolution that reads a concatenation or a tile and was left as it is, and why."""

    convolution: str
    reason: str


@dataclass(frozen=True)
class ConversionResult:
    """The converted model and what was done.

    Attributes:
        model: equal to the given model at every pixel; parameters are copies, names are kept, except that
            ``conv.weight`` becomes ``conv.nchw_block.weight``, ``conv.nc_block.weight`` and so on. A module that the
            traced forward does not use is dropped.
        converted: in the order of execution.
        refused: near-misses, in the order of execution.
    """

    model: fx.GraphModule
    converted: tuple[Conversion, ...]
    refused: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} converted, {len(self.refused)} refused"]
        for done in self.converted:
            lines.append(f"  {done.convolution}: MSConv2d({list(done.in_channels)})")
            lines += [f"    note: {note}" for note in done.notes]
        lines += [f"  {refusal.convolution}: not converted: {refusal.reason}" for refusal in self.refused]
        return "\n".join(lines)


def convert(
    model: nn.Module, example_inputs: ExampleInputs | None = None, *, leaf_modules: Sequence[Leaf | nn.Module] = ()
) -> ConversionResult:
    """A copy of the model in which tile-concat-conv is `MSConv2d`: equal at every pixel, borders included.

    Nothing is tiled in the result unless something else still reads the tile. Call it on a model in eval mode if a
    BatchNorm or Dropout lies between a tile and its convolution. The result can be trained, saved and exported.

    Args:
        model: any module that `torch.fx` can trace. It is not modified.
        example_inputs: arguments of a call, as a tuple or as a dict by name. They tell ranks, channel counts and dtypes,
            and fix optional arguments that are not given; only shapes and dtypes are looked at. Extents of height and
            width in the example prove nothing, so the result is exact at other sizes too: an extent counts as 1 only
            if the network makes it 1 (``[:, :, None, None]``, ``view(n, c, 1, 1)``, pooling to 1, ``keepdim``).
            Without examples, sites whose ranks or channels stay unknown are refused with that reason.
        leaf_modules: modules (instances, types or dotted names) not to trace into. They are kept as they are.

    Assumptions: ``x * 0`` is zero (x is finite), and a buffer whose values are uniform (coordinates) keeps them. What
    `torch.fx` does not record is not in the result: context managers inside forward (autocast, no_grad), Python side
    effects; ``self.training`` is as it was.

    Raises:
        BadInputError: the model cannot be traced (the message names the module and the line), or the example inputs
            do not fit it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise BadInputError(f"convert: expected an nn.Module that is not scripted, but got {type(model).__name__}")
    names = {module: name for name, module in model.named_modules()}
    leaves: list[Leaf] = []
    for leaf in leaf_modules:
        if isinstance(leaf, nn.Module) and leaf not in names:
            raise BadInputError(f"convert: leaf_modules has a {type(leaf).__name__} that is not part of the model")
        leaves.append(names[leaf] if isinstance(leaf, nn.Module) else leaf)
    traced, examples = trace(model, example_inputs, leaves)
    rewriter = Rewriter(TileGraph(traced, examples))
    rewritten, refused = _rewrite_all(rewriter)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    converted = tuple(_report(traced, site) for site in rewritten)
    _LOGGER.info("convert: %d convolutions converted, %d refused", len(converted), len(refused))
    return ConversionResult(traced, converted, tuple(refused))


def _rewrite_all(rewriter: Rewriter) -> tuple[list[Rewritten], list[Refusal]]:
    rewritten, refused = [], []
    for node in rewriter.contractions:
        try:
            site = rewriter.rewrite(node)
        except RefusedError as refusal:
            refused.append(Refusal(rewriter.name(node), str(refusal)))
            continue
        if site is not None:
            rewritten.append(site)
    rewriter.remove_unused()
    return rewritten, refused


def _report(traced: fx.GraphModule, site: Rewritten) -> Conversion:
    sources = {
        kind: tuple(segment.node.name for segment in site.segments if segment.kind == kind) for kind in SOURCE_NAMES
    }
    notes = list(site.notes)
    if site.concatenation in set(traced.graph.nodes):
        readers = ", ".join(user.name for user in site.concatenation.users)
        notes.append(f"the concatenated tensor is still built, because it is also read by {readers}")
    sources = {kind: names for kind, names in sources.items() if names}
    return Conversion(site.name, site.replacement, site.in_channels(), sources, tuple(notes))
