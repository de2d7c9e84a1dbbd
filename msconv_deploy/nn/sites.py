"""Sites in a traced network, a Conv2d that reads a tile through a concatenation, and their rewrite to `MSConv2d`."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.facts import BATCH, CHANNELS, HEIGHT, WIDTH
from msconv_deploy.nn.fx_nodes import argument, describe, has_hooks, mutated, operand, operation
from msconv_deploy.nn.msconv2d import MSConv2d
from msconv_deploy.nn.tile_graph import TileGraph
from msconv_deploy.nn.tile_rules.base import Core, Rule
from msconv_deploy.nn.tile_rules.concatenation import SOURCE_INDEX
from msconv_deploy.nn.tile_rules.copies import Pad
from msconv_deploy.nn.tile_rules.table import obstacle_of
from msconv_deploy.nn.tracing import assert_rank, example
from msconv_deploy.ops.configuration import SOURCE_NAMES

_KIND = {(False, False): "nchw", (False, True): "nch", (True, False): "ncw", (True, True): "nc"}
_AXES = {
    "nchw": frozenset[int](),
    "nch": frozenset((WIDTH,)),
    "ncw": frozenset((HEIGHT,)),
    "nc": frozenset((HEIGHT, WIDTH)),
}


class RefusedError(Exception):
    """A near-miss: the site cannot be rewritten exactly. The message is the reason."""


@dataclass(frozen=True)
class Segment:
    """A range of the concatenation's channels that comes from one tensor with one set of uniform axes."""

    node: fx.Node
    begin: int
    channels: int
    kind: str


@dataclass(frozen=True)
class Rewritten:
    """What became of a site: the module's name, the values that each source reads, and what to know about it."""

    name: str
    replacement: str
    segments: Sequence[Segment]
    concatenation: fx.Node
    notes: Sequence[str]

    def in_channels(self) -> tuple[int, int, int, int]:
        return _in_channels(self.segments)


def _in_channels(segments: Sequence[Segment]) -> tuple[int, int, int, int]:
    counts = [sum(s.channels for s in segments if s.kind == kind) for kind in SOURCE_NAMES]
    return (counts[0], counts[1], counts[2], counts[3])


class Rewriter:
    """Rewrites the sites of one traced network, one after the other."""

    def __init__(self, graph: TileGraph) -> None:
        self.graph = graph
        self.traced = graph.traced
        nodes = list(self.traced.graph.nodes)
        self.contractions = [n for n in nodes if self._is_contraction(n)]
        self._calls = [str(n.target) for n in nodes if n.op == "call_module"]
        self._attributes = [str(n.target) for n in nodes if n.op == "get_attr"]
        self._hazards = _hazards(self.traced)

    def _is_contraction(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.graph.module(node), nn.modules.conv._ConvNd)
        return operation(node) in _CONV_FUNCTIONS

    def name(self, node: fx.Node) -> str:
        """The convolution's name in the user's network: its module's, or that of the weight that a function reads."""
        weight = argument(node, 1, "weight")
        is_attribute = isinstance(weight, fx.Node) and weight.op == "get_attr"
        return str(node.target) if node.op == "call_module" else str(weight.target) if is_attribute else node.name

    def rewrite(self, node: fx.Node) -> Rewritten | None:
        """Rewrite one convolution.

        Returns:
            What was done; None if it reads neither a concatenation nor a tile.

        Raises:
            RefusedError: it does, but the rewrite would not be exact or not possible.
        """
        source = operand(node)
        if source is None:
            return None
        source, extra = self._without_zero_padding(node, source)
        if self.graph.fact(node).is_tile:
            return None  # a 1x1 convolution of a tile: it runs on the core wherever that is wanted
        parts = self.graph.parts(source, self._channel_dim(node))
        facts = [self.graph.fact(part) for part in parts]
        if len(parts) == 1 and not (facts[0].is_tile or facts[0].lost):
            self._check_hidden_tile(parts[0])
            return None
        if not any(fact.is_tile for fact in facts):
            reasons = dict.fromkeys(fact.lost for fact in facts if fact.lost)
            raise RefusedError("; ".join(reasons) or "no concatenated tensor is known to be a tile of a smaller one")
        conv = self._convolution(node)
        if any(extra) and not isinstance(conv.padding, str):
            conv.padding = tuple(p + e for p, e in zip(conv.padding, extra, strict=True))
        segments = self._segments(parts, conv)
        sources = self._sources(segments)
        self._check_in_place(source, sources)
        module, name = self._module(conv, segments), self.name(node)
        replacement = self._install(node, module)
        notes = self._notes(sources)
        dead = self._call(node, replacement, sources, conv.weight.dtype)
        self._remove_dead(list(dead))
        self._remove_parameters(dead)
        return Rewritten(name, replacement, segments, source, notes)

    def _channel_dim(self, node: fx.Node) -> int:
        spatial = _CONV_FUNCTIONS.get(operation(node) or "", 2)
        if node.op == "call_module":
            module: Any = self.graph.module(node)
            spatial = len(module.kernel_size)
        return -1 - spatial

    # -- is it possible?

    def _check_hidden_tile(self, node: fx.Node) -> None:
        """Report what stands between a concatenation with a tile and the convolution.

        Raises:
            RefusedError: such an operation was found.
        """
        inside: tuple[fx.Node, int] | None = (node, CHANNELS)
        while inside is not None:
            node, dim = inside
            inside = self.graph.rule(node).split(self.graph, node, dim)
        for source in node.all_input_nodes if self.graph.fact(node).rank != 0 else []:
            parts = self.graph.parts(source, CHANNELS)
            if len(parts) > 1 and any(self.graph.fact(part).is_tile for part in parts):
                raise RefusedError(
                    f"{describe(node)} stands between the concatenation with a tile and the convolution, and is not known "
                    "to act on every channel alone without parameters"
                )

    def _without_zero_padding(self, node: fx.Node, source: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
        """Zero padding by a layer of its own, symmetric and in front of a zero-padded Conv2d, becomes the convolution's."""
        module = self.graph.module(node) if node.op == "call_module" else None
        rule, inner = self.graph.rule(source), operand(source)
        if (
            type(module) is not nn.Conv2d
            or not isinstance(rule, Pad)
            or inner is None
            or isinstance(module.padding, str)
        ):
            return source, (0, 0)
        widths, mode, value = rule.widths(self.graph, source) or ([], "", 0.0)
        if len(widths) != 4 or mode != "constant" or value != 0 or module.padding_mode != "zeros":
            return source, (0, 0)
        left, right, top, bottom = widths
        if left != right or top != bottom or min(widths) < 0 or not any(widths):
            return source, (0, 0)
        return inner, (top, left)

    def _convolution(self, node: fx.Node) -> nn.Conv2d:
        """A copy of the convolution as a module that may be changed.

        Raises:
            RefusedError: it is no plain Conv2d of its own at this place.
        """
        if node.op != "call_module":
            return self._functional(node)
        module, target = self.graph.module(node), str(node.target)
        if type(module) is not nn.Conv2d:
            raise RefusedError(f"{type(module).__name__} is not rewritten in PyTorch, only nn.Conv2d itself is")
        if has_hooks(module):
            raise RefusedError(
                "the convolution has hooks (weight_norm and spectral_norm are hooks too: remove them first)"
            )
        if self._calls.count(target) > 1:
            raise RefusedError(f"the convolution is shared by {self._calls.count(target)} calls with different inputs")
        if any(name.startswith(f"{target}.") for name in self._attributes):
            raise RefusedError("the weight or bias of the convolution is also read directly")
        self._check_tied([module.weight, module.bias])
        return copy.deepcopy(module)

    def _functional(self, node: fx.Node) -> nn.Conv2d:
        """`F.conv2d` with parameters of the network and literal arguments, as a module."""
        if operation(node) != "conv2d":
            raise RefusedError(f"{operation(node)} is not rewritten in PyTorch, only conv2d is")
        nodes = [argument(node, 1, "weight"), argument(node, 2, "bias")]
        for name, value in zip(("weight", "bias"), nodes, strict=True):
            if value is not None and not (
                isinstance(value, fx.Node) and value.op == "get_attr" and len(value.users) == 1
            ):
                raise RefusedError(f"F.conv2d whose {name} is not a parameter that is read here alone")
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        options = {name: argument(node, 3 + i, name, default) for i, (name, default) in enumerate(defaults.items())}
        if any(isinstance(leaf, fx.Node) for leaf in torch.utils._pytree.tree_leaves(options)):
            raise RefusedError("F.conv2d whose stride, padding, dilation or groups is computed")
        weight, bias = (None if n is None else _attribute(self.traced, str(n.target)) for n in nodes)
        if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None):
            raise RefusedError("F.conv2d whose weight or bias is not a parameter")
        self._check_tied([weight, bias])
        channels, kernel = weight.shape[1] * options["groups"], (weight.shape[2], weight.shape[3])
        conv = nn.Conv2d(channels, weight.shape[0], kernel, **options, bias=bias is not None, device="meta")
        conv.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return conv

    def _check_tied(self, parameters: Sequence[Tensor | None]) -> None:
        for parameter in parameters:
            named = self.traced.named_parameters(remove_duplicate=False)
            names = [name for name, p in named if p is parameter]
            if len(names) > 1:
                raise RefusedError(f"the weights of the convolution are tied: {', '.join(names)} are one parameter")

    def _segments(self, parts: Sequence[fx.Node], conv: nn.Conv2d) -> list[Segment]:
        """The parts as segments, in the order of the concatenation."""
        facts = [self.graph.fact(part) for part in parts]
        ranks = {fact.rank for fact in facts} - {None}
        if not ranks:
            raise RefusedError("the rank of the concatenation is not known without example_inputs")
        if ranks != {4}:
            raise RefusedError("the convolution reads an input without a batch: MSConv2d needs one")
        sizes = [self.graph.size(part, CHANNELS) for part in parts]
        if sizes.count(None) == 1:
            sizes[sizes.index(None)] = conv.in_channels - sum(n for n in sizes if n is not None)
        if None in sizes:
            raise RefusedError("the channels of several concatenated tensors are not known without example_inputs")
        segments = []
        begin = 0
        for part, fact, channels in zip(parts, facts, sizes, strict=True):
            assert channels is not None
            segments.append(Segment(part, begin, channels, _KIND[fact.is_copied(HEIGHT), fact.is_copied(WIDTH)]))
            begin += channels
        if begin != conv.in_channels:
            raise RefusedError(
                f"the concatenated tensors have {begin} channels, but the convolution reads {conv.in_channels}"
            )
        self._check_segments(segments, conv)
        return segments

    @staticmethod
    def _check_segments(segments: Sequence[Segment], conv: nn.Conv2d) -> None:
        kinds = {segment.kind for segment in segments}
        if kinds == {"nchw"}:
            raise RefusedError("no concatenated tensor is known to be a tile of a smaller one")
        for word, owners in (("height", {"nchw", "nch"}), ("width", {"nchw", "ncw"})):
            if not kinds & owners:
                raise RefusedError(f"every concatenated tensor is a tile along the {word}: no source defines it")
        if conv.groups > 1:
            raise RefusedError(f"the {conv.groups} groups of the convolution cut across the concatenation")

    def _check_in_place(self, concatenation: fx.Node, sources: Mapping[str, Core]) -> None:
        """The new nodes read their inputs later than the concatenation did: nothing may change them in between."""
        created = set(self.graph.created)
        read = {n for n in _upstream([core.node for core in sources.values()], created) if n not in created}
        involved: set[fx.Node] = set()
        pending = [concatenation]
        while pending:
            node = pending.pop()
            if node in involved or self.graph.fact(node).rank == 0:
                continue
            involved.add(node)
            pending += [] if node in read else node.all_input_nodes
        changed = {n for node in involved for n in _aliases(self.traced, node)} & self._hazards
        if changed:
            names = ", ".join(sorted(n.name for n in changed))
            raise RefusedError(f"an operation in place changes {names}, which the concatenation or its operands read")

    # -- the rewrite

    def _sources(self, segments: Sequence[Segment]) -> dict[str, Core]:
        """For each kind one tensor of rank 4 with its missing axes at extent 1; several segments are concatenated.

        Copies over the batch are dropped as well, because MSConv2d broadcasts a batch of 1, except where `torch.cat`
        or the output needs the full batch.
        """
        sources: dict[str, Core] = {}
        for kind in SOURCE_NAMES:
            own = [segment.node for segment in segments if segment.kind == kind]
            if own:
                sources[kind] = self._joined(own, kind, drop_batch=True)
        if not any(core.full_batch for core in sources.values()):
            kind = next(iter(sources))
            sources[kind] = self._joined([s.node for s in segments if s.kind == kind], kind, drop_batch=False)
        return sources

    def _joined(self, nodes: Sequence[fx.Node], kind: str, drop_batch: bool) -> Core:
        cores = [self.graph.core(node, _AXES[kind], drop_batch) for node in nodes]
        if len(cores) == 1:
            return cores[0]
        single = all(self.graph.fact(core.node).is_one(BATCH) for core in cores)
        full = all(core.full_batch for core in cores)
        if not (single or full):
            cores, full = [self.graph.core(node, _AXES[kind]) for node in nodes], True
        last = max((core.node for core in cores), key=list(self.traced.graph.nodes).index)
        with self.graph.behind(last):
            return Core(self.graph.call(torch.cat, [core.node for core in cores], CHANNELS), full)

    def _module(self, conv: nn.Conv2d, segments: Sequence[Segment]) -> MSConv2d:
        """The MSConv2d, with the weight's input channels in the order of the sources."""
        order = [
            channel
            for kind in SOURCE_NAMES
            for s in segments
            if s.kind == kind
            for channel in range(s.begin, s.begin + s.channels)
        ]
        requires_grad = conv.weight.requires_grad
        conv.weight = nn.Parameter(conv.weight.detach()[:, order], requires_grad)
        try:
            module = MSConv2d.from_conv2d(conv, _in_channels(segments), "tiled")
        except BadInputError as error:
            raise RefusedError(str(error)) from error
        for weight in module.weights.values():
            weight.requires_grad_(requires_grad)
        if module.bias is not None and conv.bias is not None:
            module.bias.requires_grad_(conv.bias.requires_grad)
        return module

    def _install(self, node: fx.Node, module: MSConv2d) -> str:
        """Put the module in the convolution's place, or beside the weight of a function; returns its name."""
        target = str(node.target) if node.op == "call_module" else f"{self.name(node)}_msconv"
        parent, _, name = target.rpartition(".")
        owner = self.traced.get_submodule(parent)
        while node.op != "call_module" and hasattr(owner, name):
            name += "_"
        setattr(owner, name, module)
        return f"{parent}.{name}" if parent else name

    def _call(self, node: fx.Node, target: str, sources: Mapping[str, Core], dtype: torch.dtype) -> list[fx.Node]:
        """Replace the node by a call of the module; returns the nodes that nothing may read any more."""
        graph = self.traced.graph
        cores = {kind: core.node for kind, core in sources.items()}
        alike = [n for n in cores.values() if getattr(example(n), "dtype", None) == dtype]
        with graph.inserting_before(node):
            for kind, core in cores.items():
                if example(core) is not None and example(core).dtype != dtype:  # `cat` had promoted it
                    core = self.graph.call("type_as", core, alike[0]) if alike else self.graph.call("to", core, dtype)
                cores[kind] = self._vector(core, kind)
            arguments = [cores.get(kind) for kind in SOURCE_NAMES]
            while arguments[-1] is None:
                arguments.pop()
            new = graph.call_module(target, tuple(arguments))
        self.graph.succeed(node, new)
        before = node.all_input_nodes
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        return before

    def _vector(self, core: fx.Node, kind: str) -> fx.Node:
        """The core without the dimensions that its kind lacks."""
        if kind == "nchw":
            return core
        inner = operand(core)
        if core.target is operator.getitem and inner is not None and core.args[1] == SOURCE_INDEX[kind]:
            return inner
        if kind == "nc":
            return self.graph.call("flatten", core, 1)
        return self.graph.call("squeeze", core, WIDTH if kind == "nch" else HEIGHT)

    def _notes(self, sources: Mapping[str, Core]) -> list[str]:
        """Layers that behave differently in training mode now that they run on a core."""
        created = set(self.graph.created)
        read = _upstream([core.node for core in sources.values()], created)
        names = {str(n.target) for n in read if n in created and n.op == "call_module"}
        modules = {name: self.traced.get_submodule(name) for name in sorted(names)}
        return [
            f"{type(module).__name__} {name!r} now runs on the core: keep it in eval mode, in training mode it would differ"
            for name, module in modules.items()
            if isinstance(module, (nn.BatchNorm2d, nn.modules.dropout._DropoutNd))
        ]

    # -- cleaning up

    def _remove_dead(self, pending: list[fx.Node]) -> None:
        """Remove what only the rewritten convolution needed: the concatenation, the tiles, the sizes."""
        while pending:
            node = pending.pop()
            if not node.users and not node._erased and self._is_removable(node):
                pending += node.all_input_nodes
                self.traced.graph.erase_node(node)

    def _remove_parameters(self, dead: Sequence[fx.Node]) -> None:
        """Remove the parameters that a replaced `F.conv2d` read."""
        for node in dead:
            if node.op == "get_attr" and node._erased:
                owner, _, name = str(node.target).rpartition(".")
                delattr(self.traced.get_submodule(owner), name)

    def remove_unused(self) -> None:
        """Remove new nodes that nothing reads, and what only they kept."""
        created, kept = set(self.graph.created), []
        for node in reversed(list(self.traced.graph.nodes)):
            if node in created and not node.users:
                kept += [n for n in node.all_input_nodes if n not in created]
                self.traced.graph.erase_node(node)
        self._remove_dead(kept)

    def _is_removable(self, node: fx.Node) -> bool:
        """Has the node no effect but its value?"""
        if node.op in ("placeholder", "output") or node.target is assert_rank:
            return False
        if mutated(self.traced, node) is not None and _aliases(self.traced, node) & self._hazards:
            return False
        if node.op == "call_module":
            return type(self.graph.rule(node)) is not Rule and not obstacle_of(self.graph, node)
        known = type(self.graph.rule(node)) is not Rule or operation(node) in ("size", "meshgrid", "dim")
        return known or node.op == "get_attr" or node.target is getattr


_CONV_FUNCTIONS = {
    "conv1d": 1, "conv2d": 2, "conv3d": 3, "conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3,
}  # fmt: skip


def _upstream(nodes: Sequence[fx.Node], through: set[fx.Node]) -> set[fx.Node]:
    """The nodes, and everything that they read, followed through the given nodes only."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes if node in through else []
    return seen


def _attribute(root: Any, target: str) -> Any:
    for name in target.split("."):
        root = getattr(root, name)
    return root


# -- operations in place ---------------------------------------------------------------------------------------------

_VIEWING_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.modules.dropout._DropoutNd,
)
# Functions whose result lies in memory of its own. What is not listed counts as a view, which is the safe side.
_FRESH = {
    *(
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "neg",
        "pow",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "abs",
        "square",
        "clamp",
        "where",
    ),
    *("sigmoid", "relu", "tanh", "leaky_relu", "elu", "silu", "gelu", "hardtanh", "hardswish", "softplus", "softmax"),
    *(
        "cat",
        "concat",
        "stack",
        "repeat",
        "clone",
        "flip",
        "roll",
        "cumsum",
        "mean",
        "sum",
        "amax",
        "amin",
        "interpolate",
    ),
    *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "bmm", "einsum", "embedding", "one_hot"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "instance_norm", "group_norm", "layer_norm"),
    *("ones", "zeros", "full", "new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like"),
}


def _is_fresh(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Is the result known to lie in memory of its own?"""
    if mutated(traced, node) is not None:
        return False
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _VIEWING_MODULES)
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in _FRESH


def _aliases(traced: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """The node and all that may share memory with it upstream."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if _is_fresh(traced, current):
            continue
        target = mutated(traced, current)
        pending += current.all_input_nodes if target is None else [target]
    return seen


def _hazards(traced: fx.GraphModule) -> set[fx.Node]:
    """Values that an operation in place changes while someone else may read them."""
    hazards: set[fx.Node] = set()
    for node in traced.graph.nodes:
        target = mutated(traced, node)
        if target is None:
            continue
        memory = _aliases(traced, target)
        if any(len(n.users) != 1 or n.op == "get_attr" for n in memory):
            hazards |= memory
    return hazards
