"""PyTorch: a Polygraphy runner around an `nn.Module` whose inputs and outputs have names."""

from __future__ import annotations

import copy
import inspect
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.runtimes.settings import Settings

NAME = "torch"
SUBJECT: Literal["module"] = "module"


def check_available() -> None:
    """That the package imports is all that is needed."""


def version() -> str:
    return str(torch.__version__)


@dataclass(frozen=True)
class NamedModule:
    """A module and the names of what goes in and out.

    Attributes:
        module: evaluated in eval mode, in its own dtype, without gradients.
        inputs: name -> (dtype, rank) in which they are given. If all names are parameters of ``forward`` they are
            passed by keyword, else by position in this order.
        output_names: names of the outputs, in the order in which ``forward`` returns them; tuples, lists and dicts are
            flattened depth first.
    """

    module: nn.Module
    inputs: Mapping[str, tuple[np.dtype, int]]
    output_names: Sequence[str]

    def in_float64(self) -> NamedModule:
        """A copy whose parameters and buffers are widened, not rounded: the reference for every narrower type."""
        return replace(self, module=copy.deepcopy(self.module).double())

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters (else buffers); float32 for a module that has neither."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.float32

    @property
    def dtype_name(self) -> str:
        """Such as ``float16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def make_runner(subject: NamedModule, settings: Settings, name: str) -> ModuleRunner:
    """A runner for the module. The number of threads is a property of the process in PyTorch, so it is left alone."""
    return ModuleRunner(subject, name)


class ModuleRunner(BaseRunner):
    """Evaluates a :class:`NamedModule`. Floating inputs are converted to the module's dtype; bfloat16 outputs, which
    NumPy does not have, are returned as float32 (every bfloat16 is one)."""

    def __init__(self, subject: NamedModule, name: str) -> None:
        super().__init__(name=name)
        self.subject = subject
        self._by_keyword = _accepts_keywords(subject.module, subject.inputs)

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name, (dtype, rank) in self.subject.inputs.items():
            metadata.add(name, dtype=dtype, shape=(None,) * rank)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        start = time.perf_counter()
        outputs = evaluate(self.subject, feed_dict, self._by_keyword)
        self.inference_time = time.perf_counter() - start
        return OrderedDict((name, to_numpy(value)) for name, value in outputs.items())


def evaluate(
    subject: NamedModule, feed: Mapping[str, np.ndarray], by_keyword: bool | None = None
) -> OrderedDict[str, Tensor]:
    """Output by name.

    Raises:
        BadInputError: the module returns another number of tensors than there are output names.
    """
    if by_keyword is None:
        by_keyword = _accepts_keywords(subject.module, subject.inputs)
    module = subject.module
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    tensors = {name: _to_tensor(feed[name], subject.dtype, device) for name in subject.inputs}
    with torch.no_grad(), _eval_mode(module):
        result = module(**tensors) if by_keyword else module(*tensors.values())
    values = list(flatten(result))
    if len(values) != len(subject.output_names):
        raise BadInputError(
            f"{type(module).__name__}.forward returns {len(values)} tensors, but {len(subject.output_names)} outputs "
            f"are named: {', '.join(subject.output_names)}"
        )
    return OrderedDict(zip(subject.output_names, values, strict=True))


def flatten(result: Any) -> Iterator[Tensor]:
    """Tensors of a nested result, depth first; None is skipped, as the exporters do."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from flatten(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from flatten(value)
    elif result is not None:
        raise BadInputError(f"forward returns a {type(result).__name__}; it must return tensors or containers of them")


def to_numpy(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()


def _to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":  # ml_dtypes: torch does not know NumPy's name for it
        array = array.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _accepts_keywords(module: nn.Module, names: Iterable[str]) -> bool:
    parameters = inspect.signature(module.forward).parameters
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return all(name in parameters and parameters[name].kind in kinds for name in names)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration; every submodule's own mode is restored."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training
