"""A user's network as a `torch.fx` graph, and what example inputs tell of every value in it."""

from __future__ import annotations

import copy
import inspect
import logging
import operator
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree

import msconv_deploy.nn
from msconv_deploy.errors import BadInputError
from msconv_deploy.nn import tiling
from msconv_deploy.nn.channel_sum import ChannelSumConv2d
from msconv_deploy.nn.dynamic_conv import DynamicConv2d
from msconv_deploy.nn.msconv2d import MSConv2d

_LOGGER = logging.getLogger(__name__)

_OWN_MODULES = (ChannelSumConv2d, DynamicConv2d, MSConv2d)
_EXAMPLE = "msconv_example"
_UNKNOWABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
_SIMPLE = (type(None), bool, int, float, str)
ExampleInputs = Sequence[Any] | Mapping[str, Any]
Leaf = str | type[nn.Module]


def assert_rank(x: Any, rank: int) -> None:
    """Guard in a converted network: a shape was unpacked (``*x.shape[2:]``) as if ``x`` had this many dimensions.

    Raises:
        BadInputError: it has another number.
    """
    if x.dim() != rank:
        raise BadInputError(
            f"converted network: a tensor of {x.dim()} dimensions arrived where the network was traced for {rank}, "
            "because it unpacks the shape; convert again with example_inputs of the right shape"
        )


class _Value(fx.Proxy):
    """Proxy that can be unpacked: ``*x.shape[2:]`` asks for a length, and goes on without if that is a TypeError."""

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)

    def __len__(self) -> int:
        raise TypeError("the length of a traced value is not known")


class _Attribute(fx.proxy.Attribute):
    """Attribute of a proxy, as ``x.shape``."""

    __getattr__ = _Value.__getattr__
    __len__ = _Value.__len__


class _ConstantShape(_Value):
    """Proxy of a parameter or buffer, whose shape never changes: it may steer Python control flow."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self._value = value

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def ndim(self) -> int:
        return self._value.ndim

    def size(self, dim: int | None = None) -> Any:
        return self._value.size() if dim is None else self._value.size(dim)

    def dim(self) -> int:
        return self._value.dim()

    def numel(self) -> int:
        return self._value.numel()


class _Tracer(fx.Tracer):
    """`fx.Tracer` that keeps MSConv2d and the user's leaf modules whole and can unpack shapes.

    Args:
        leaves: types and dotted names of modules not to trace into.
        ranks: number of dimensions to assume at the n-th open-ended unpacking of a shape; 4 where not given.
    """

    proxy_buffer_attributes = True

    def __init__(self, leaves: Sequence[Leaf], ranks: Mapping[int, int]) -> None:
        super().__init__(autowrap_functions=(tiling.tile_and_concatenate,))
        self._leaf_types: tuple[type, ...] = (*_OWN_MODULES, *(leaf for leaf in leaves if not isinstance(leaf, str)))
        self._leaf_names = {leaf for leaf in leaves if isinstance(leaf, str)}
        self._ranks = ranks
        self.guards: dict[fx.Node, fx.Node] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = issubclass(type(m), self._leaf_types) or module_qualified_name in self._leaf_names
        return own or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if not isinstance(attr_val, torch.Tensor):
            return attr_val
        for named in (self.root.named_parameters(), self.root.named_buffers()):
            for name, value in named:
                if value is attr_val:
                    if name not in parameter_proxy_cache:
                        parameter_proxy_cache[name] = self.create_proxy(
                            "get_attr", name, (), {}, None, None, lambda node: _ConstantShape(node, self, attr_val)
                        )
                    return parameter_proxy_cache[name]
        return attr_val

    def _guarded_rank(self, tensor: fx.Node) -> int:
        """The rank that is assumed for a tensor whose shape is unpacked; the network checks it at run time."""
        if tensor not in self.guards:
            rank = self._ranks.get(len(self.guards), 4)
            self.guards[tensor] = self.create_node("call_function", assert_rank, (tensor, rank), {})
        return int(self.guards[tensor].args[1])  # type: ignore[arg-type]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Unpack a slice of a shape: ``x.expand(-1, -1, *x.shape[2:])``."""
        shape: Any = obj.node
        index: Any = slice(None)
        if shape.target is operator.getitem:
            shape, index = shape.args
        owner = shape_owner(shape)
        bounds = [index.start, index.stop, index.step] if isinstance(index, slice) else [shape]
        if owner is None or any(isinstance(bound, fx.Node) for bound in bounds):
            return super().iter(obj)
        start, stop = index.start or 0, index.stop
        rank = max(abs(start), abs(stop or 0))
        if (start < 0) != (stop is None or stop < 0):  # its length depends on the number of dimensions
            rank = self._guarded_rank(owner)
        entries: Any = obj
        return iter([entries[i] for i in range(len(range(rank)[index]))])


def shape_owner(node: Any) -> fx.Node | None:
    """The tensor whose whole shape this node is (``x.shape`` or ``x.size()``)."""
    if not isinstance(node, fx.Node):
        return None
    by_attribute = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    by_method = node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.all_input_nodes[0] if by_attribute or by_method else None


@contextmanager
def _recording(tracer: fx.Tracer) -> Iterator[None]:
    """While tracing, record calls that `torch.fx` cannot see: tensor constructors with traced sizes as separate
    arguments, and `tile_and_concatenate` reached through its module."""
    places: list[tuple[Any, str]] = [
        (torch, "ones"),
        (torch, "zeros"),
        (torch, "empty"),
        (torch, "rand"),
        (torch, "randn"),
    ]
    places += [(msconv_deploy.nn, "tile_and_concatenate"), (tiling, "tile_and_concatenate")]
    originals = [(place, name, getattr(place, name)) for place, name in places]

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    try:
        for place, name, function in originals:
            setattr(place, name, recorder(function))
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


class Examples:
    """Shapes and dtypes of every value of a traced network at the example inputs, computed on fake tensors.

    Without example inputs it knows nothing. Values are kept in ``node.meta``.
    """

    def __init__(self, traced: fx.GraphModule, arguments: Mapping[str, Any] | None) -> None:
        self._traced = traced
        self._mode = None if arguments is None else FakeTensorMode(allow_non_fake_inputs=True)
        self._arguments = arguments or {}

    def propagate(self) -> None:
        """Evaluate all nodes in order.

        Raises:
            BadInputError: the network refuses the example inputs; the message names the node.
        """
        for node in self._traced.graph.nodes:
            self.evaluate(node)

    def evaluate(self, node: fx.Node) -> None:
        """Evaluate one node whose inputs have been evaluated; unknown inputs make it unknown."""
        node.meta.pop(_EXAMPLE, None)
        if self._mode is None or node.op == "output":
            return
        if any(_EXAMPLE not in source.meta for source in node.all_input_nodes):
            return
        try:
            with self._mode, torch.no_grad():
                node.meta[_EXAMPLE] = self._run(node)
        except _UNKNOWABLE as error:
            _LOGGER.debug("the value of %s depends on data: %s", node.name, error)
        except Exception as error:
            raise BadInputError(
                f"convert: the network cannot be run on example_inputs: {type(error).__name__} at {node.format_node()}: "
                f"{error}. Give inputs as for a call of the model"
            ) from error

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta[_EXAMPLE])
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return self._fake(_attribute(self._traced, str(node.target)))
        if node.op == "call_module":
            return self._run_module(self._traced.get_submodule(str(node.target)), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.target is assert_rank:
            return None  # `trace` has its own check, which can correct the rank
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _run_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module without touching its state (running statistics), on zeros if its control flow needs values."""
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        try:
            return torch.func.functional_call(module, pytree.tree_map(self._fake, state), args, kwargs)
        except _UNKNOWABLE:
            with unset_fake_temporarily():
                state = {name: value.detach().clone() for name, value in state.items()}
                args, kwargs = pytree.tree_map(_zeros, (args, kwargs))
                value = torch.func.functional_call(module, state, args, kwargs)
            return pytree.tree_map(self._fake, value)

    def _placeholder(self, node: fx.Node) -> Any:
        name = str(node.target).lstrip("*")
        value = self._arguments[name] if name in self._arguments else node.args[0] if node.args else None
        return pytree.tree_map(self._fake, value)

    def _fake(self, value: Any) -> Any:
        assert self._mode is not None
        return self._mode.from_tensor(value) if isinstance(value, torch.Tensor) else value


def _zeros(value: Any) -> Any:
    return (
        torch.zeros(value.shape, dtype=value.dtype, device=value.device) if isinstance(value, torch.Tensor) else value
    )


def example(node: fx.Node) -> Any:
    """The node's value at the example inputs (tensors are fake: shape and dtype only); None if unknown."""
    return node.meta.get(_EXAMPLE)


def example_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape at the example inputs: rank and channels may be used, extents of other dimensions prove nothing."""
    value = example(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _attribute(root: nn.Module, target: str) -> Any:
    for name in target.split("."):
        root = getattr(root, name)
    return root


def trace(
    model: nn.Module, example_inputs: ExampleInputs | None, leaves: Sequence[Leaf]
) -> tuple[fx.GraphModule, Examples]:
    """Trace a copy of the model; the model itself is left alone.

    Args:
        model: any module that `torch.fx` can trace.
        example_inputs: positional arguments as a sequence or keyword arguments as a mapping, or None. Arguments that
            are not given keep their defaults.
        leaves: types or dotted names of modules not to trace into.

    Raises:
        BadInputError: the model cannot be copied or traced, or refuses the example inputs.
    """
    unknown = [leaf for leaf in leaves if isinstance(leaf, str) and leaf not in dict(model.named_modules())]
    if unknown:
        raise BadInputError(f"convert: leaf_modules names {unknown}, but the model has no such module")
    arguments = None if example_inputs is None else _bind(model, example_inputs)
    try:
        model = copy.deepcopy(model)
    except Exception as error:
        raise BadInputError(f"convert: the model cannot be copied (copy.deepcopy): {error}") from error
    ranks: dict[int, int] = {}
    while True:
        traced, guards = _trace_once(model, arguments, leaves, ranks)
        examples = Examples(traced, arguments)
        wrong = _wrong_rank(examples, traced, guards)
        if wrong is None:
            return traced, examples
        ranks[wrong[0]] = wrong[1]


def _wrong_rank(examples: Examples, traced: fx.GraphModule, guards: Sequence[fx.Node]) -> tuple[int, int] | None:
    """The first shape that was unpacked with another number of dimensions than the example has: (which, rank)."""
    positions = {guard.name: position for position, guard in enumerate(guards)}
    for node in traced.graph.nodes:
        if node.name in positions and node.target is assert_rank:
            shape = example_shape(node.args[0])
            if shape is not None and len(shape) != node.args[1]:
                return positions[node.name], len(shape)
        examples.evaluate(node)
    return None


def _trace_once(
    model: nn.Module, arguments: Mapping[str, Any] | None, leaves: Sequence[Leaf], ranks: Mapping[int, int]
) -> tuple[fx.GraphModule, list[fx.Node]]:
    tracer = _Tracer(leaves, ranks)
    fixed = _fixed_defaults(model, arguments)
    try:
        with _recording(tracer):
            graph = tracer.trace(model, concrete_args=fixed or None)
    except Exception as error:
        raise BadInputError(_trace_message(model, tracer, error)) from error
    for node in graph.nodes:
        # fx renames the placeholder of an argument that it fixes; callers may pass it by name.
        if node.op == "placeholder" and node.target not in fixed and node.target.removesuffix("_1") in fixed:
            node.target = node.target.removesuffix("_1")
    return fx.GraphModule(model, graph, type(model).__name__), list(tracer.guards.values())


def _bind(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, Any]:
    if isinstance(example_inputs, torch.Tensor) or not isinstance(example_inputs, (Sequence, Mapping)):
        raise BadInputError(
            "convert: example_inputs must be a tuple of positional arguments or a dict of keyword arguments, "
            f"but is {type(example_inputs).__name__}"
        )
    positional = () if isinstance(example_inputs, Mapping) else tuple(example_inputs)
    keyword = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    try:
        bound = inspect.signature(model.forward).bind(*positional, **keyword)
    except TypeError as error:
        raise BadInputError(f"convert: example_inputs do not fit forward of {type(model).__name__}: {error}") from error
    return dict(bound.arguments)


def _fixed_defaults(model: nn.Module, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments that the examples leave at a simple default: fixed, so that ``if noise is None`` can be traced."""
    if arguments is None:
        return {}
    parameters = inspect.signature(model.forward).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.name not in arguments and p.default is not p.empty and isinstance(p.default, _SIMPLE)
    }


def _trace_message(model: nn.Module, tracer: _Tracer, error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if f.filename != __file__]
    where = f" in {own[-1].name} ({own[-1].filename}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    names = [name for name, _ in getattr(tracer, "module_stack", {}).values()]
    path = names[-1] if names else ""
    module = (
        f"module {path!r} ({type(model.get_submodule(path)).__name__})" if path else f"{type(model).__name__}.forward"
    )
    advice = (
        f"If no tile-concat-conv is inside it, keep it whole: convert(..., leaf_modules=[{path!r}])"
        if path
        else "Move the part that torch.fx cannot trace into a submodule and name it in leaf_modules"
    )
    return (
        f"convert: torch.fx cannot trace {module}{where}: {type(error).__name__}: {error}. {advice}; if the control "
        "flow depends on an optional argument, pass example_inputs, which fixes arguments that are not given"
    )
