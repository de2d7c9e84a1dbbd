"""Mistakes that can be planted into the optimizer: a fuzzer that does not find them proves nothing.

Each replaces one function of the product by a wrong one for a while. They are the mistakes that such rewrites have: border
classes, axes, groups, biases, padding, what is read elsewhere, what a caller may override.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np

from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.surgery.engine import axis_tables, contraction, editing
from msconv_deploy.surgery.rules import (
    drop_expand,
    merge_convs,
    sink_broadcast,
    tile_concat_conv,
    tiled_distance,
    unfold_matmul,
    unfold_max,
)
from msconv_deploy.surgery.rules.unfold_channel_sum import WindowWriter
from tests.fuzz.graphs import checking


def _border_class(original):
    """At every border, the taps of one place further in."""

    def wrong(axis, index, extent):
        return original(axis, index + 1 if index == 0 else index, extent)

    return mock.patch.object(Axis, "tap_range", wrong)


def _no_border(original):
    """Zero padding counts as more of the same."""

    def wrong(axis, extent, transposed, output_padding=0):
        return original(axis, extent, transposed, output_padding) if transposed else None

    return mock.patch.object(tile_concat_conv, "axis_table", wrong)


def _dynamic_border(original):
    """The table of a dynamic extent begins one row too late."""

    def wrong(grid):
        found = original.fget(grid)
        return (*found[1:], found[0])

    return mock.patch.object(axis_tables.range_grid(Axis(3)).__class__, "ranges", property(wrong))


def _group_scatter(original):
    """Weights of one group land in the next one."""

    def wrong(self, channels, groups=None):
        dense = original(self, channels, groups)
        outputs = self.out_channels // self.group
        return np.roll(dense, outputs, axis=0) if self.group > 1 else dense

    return mock.patch.object(contraction.Contraction, "weight_of", wrong)


def _skipped_bias(original):
    """The bias between two merged convolutions is forgotten."""

    def wrong(described):
        return None

    return mock.patch.object(merge_convs, "_bias", wrong)


def _merged_at_the_border(original):
    """Two padded convolutions are merged whatever is behind the border."""
    return mock.patch.object(merge_convs, "_is_zero_outside", return_value=True)


def _merged_padding(original):
    """The padding of the second convolution is not scaled by the stride of the first."""

    def wrong(first, second):
        found = original(first, second)
        return replace(found, pad_before=first.pad_before + second.pad_before)

    return mock.patch.object(merge_convs, "_composed_axis", wrong)


def _window_padding(original):
    """All padding of windows goes behind the image."""

    def wrong(builder, x, mode, rank, pads):
        return original(builder, x, mode, rank, {axis: (0, sum(p)) for axis, p in pads.items()})

    return mock.patch.object(editing.GraphBuilder, "pad", wrong)


def _periodic_tile(original):
    """A periodic Tile counts as copies of one value."""
    return mock.patch.object(drop_expand, "_only_copies", return_value=True)


def _shift_of_distance(original):
    """The number that is added to the difference is forgotten."""

    def wrong(tensor):
        return original(tensor)[0], 0.0

    return mock.patch.object(tiled_distance, "_without_shift", wrong)


def _wrong_axis(original):
    """The extent of a result is read from the wrong axis."""

    def wrong(graph, symbols, dim):
        found = original(graph, symbols, dim)
        return found and (found[0], 0)

    return mock.patch.object(sink_broadcast, "_holder", wrong)


def _overridden_defaults(original):
    """An initializer that a caller may override counts as constant."""

    def wrong(model):
        bare = type(model)()
        bare.CopyFrom(model)
        defaults = {tensor.name for tensor in bare.graph.initializer}
        inputs = [value for value in bare.graph.input if value.name not in defaults]
        del bare.graph.input[:]
        bare.graph.input.extend(inputs)
        return original(bare)

    return mock.patch.object(editing, "skeleton_of", wrong)


def _reversed_filter(original):
    """Windows times weights with the taps in reverse order, as a convolution of signal processing."""

    def wrong(node, finder):
        found = original(node, finder)
        if not isinstance(found, tuple):
            return found
        product, windows, weight = found
        return product, windows, weight[..., ::-1]

    return mock.patch.object(unfold_matmul, "windows_and_weights", wrong)


def _mean_without_zeros(original):
    """A mean over windows leaves out the zeros of the padding."""

    def wrong(builder, found):
        original(builder, found)
        for node in builder.nodes:
            for attribute in node.attribute:
                if attribute.name == "count_include_pad":
                    attribute.i = 0

    return mock.patch.object(unfold_max, "rewrite", wrong)


def _slices_reversed(original):
    """The taps that stay apart come in reverse order."""

    def wrong(self, op, *operands, **options):
        return original(self, op, *(operands[::-1] if op == "Concat" else operands), **options)

    return mock.patch.object(WindowWriter, "finish", wrong)


def _ends_the_process(original):
    """The optimizer ends the process."""

    def wrong(*_, **__):
        os.kill(os.getpid(), signal.SIGSEGV)

    return mock.patch.object(checking, "optimize_model", wrong)


def _never_returns(original):
    """The optimizer does not come to an end."""

    def wrong(*_, **__):
        time.sleep(3600)

    return mock.patch.object(checking, "optimize_model", wrong)


FAULTS: dict[str, tuple[Callable, object]] = {
    "border-class": (_border_class, Axis.tap_range),
    "no-border": (_no_border, axis_tables.axis_table),
    "dynamic-border": (_dynamic_border, type(axis_tables.range_grid(Axis(3))).ranges),
    "group-scatter": (_group_scatter, contraction.Contraction.weight_of),
    "skipped-bias": (_skipped_bias, merge_convs._bias),
    "merged-at-the-border": (_merged_at_the_border, None),
    "merged-padding": (_merged_padding, merge_convs._composed_axis),
    "window-padding": (_window_padding, editing.GraphBuilder.pad),
    "periodic-tile": (_periodic_tile, None),
    "shift-of-distance": (_shift_of_distance, tiled_distance._without_shift),
    "wrong-axis": (_wrong_axis, sink_broadcast._holder),
    "overridden-default": (_overridden_defaults, editing.skeleton_of),
    "reversed-filter": (_reversed_filter, unfold_matmul.windows_and_weights),
    "mean-without-zeros": (_mean_without_zeros, unfold_max.rewrite),
    "slices-reversed": (_slices_reversed, WindowWriter.finish),
    "ends-the-process": (_ends_the_process, None),
    "never-returns": (_never_returns, None),
}
"""Name -> (what makes the wrong function, the right one)."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The optimizer with one of :data:`FAULTS`."""
    make, original = FAULTS[name]
    with make(original):
        yield
