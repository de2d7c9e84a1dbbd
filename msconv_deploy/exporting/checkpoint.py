"""Reading checkpoints from strangers: safetensors, or tensors through ``torch.load(weights_only=True)``. No pickle."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 5


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Parameter name -> tensor.

    A dict that holds the state dict under ``state_dict``, ``model_state_dict`` or ``model`` is unwrapped, and the
    prefix ``module.`` of `DataParallel` is removed.

    Raises:
        BadInputError: the file is missing, is no checkpoint, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"{path}: no such checkpoint file")
    state: dict[str, Any] = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _CONTAINERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    others = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if others or not state:
        found = f"it also holds {', '.join(map(str, others[:_SHOWN]))}" if others else "it is empty"
        raise BadInputError(f"{path}: not a state dict (parameter name -> tensor): {found}")
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(path)
        return state
    except (SafetensorError, ValueError) as error:
        raise BadInputError(f"{path}: not a safetensors file, or truncated ({error})") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80":
            raise BadInputError(
                f"{path}: refused: reading it would run code (a pickle with more than tensors: "
                f"{_offender(str(error))}). Save the state dict alone, best as safetensors"
            ) from None
        raise BadInputError(f"{path}: not a checkpoint: neither safetensors nor a file of torch.save") from None
    except Exception as error:  # arbitrary bytes make the reader fail in arbitrary ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path}: not a checkpoint, or truncated ({reason})") from None
    if not isinstance(state, dict):
        raise BadInputError(f"{path}: holds a {type(state).__name__}, not a state dict (parameter name -> tensor)")
    return state


def _offender(message: str) -> str:
    """The name that `torch.load` refused, from its message; torch has no other way to tell."""
    found = re.search(r"GLOBAL:? ([\w.]+)", message)
    return found[1] if found else "torch does not name it"


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly.

    Raises:
        BadInputError: naming the keys that are missing, unexpected, of another shape or of the other semantics.
    """
    own = module.state_dict()
    problems = []
    if missing := [k for k in own if k not in state]:
        problems.append(f"missing in the checkpoint: {_listed(missing)}")
    if unexpected := [k for k in state if k not in own]:
        problems.append(f"not in the module: {_listed(unexpected)}")
    if problems:
        raise BadInputError(f"{where}: keys do not match {type(module).__name__}: {'; '.join(problems)}")
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise BadInputError(f"{where}: does not fit {type(module).__name__}: {_listed(lines, '; ')}") from None


def _listed(names: list[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
