"""Reading checkpoints from strangers: safetensors, or tensors through ``torch.load(weights_only=True)``. No pickle."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 5
_LEGACY_PICKLES = 5
"""At the start of a file of torch before 1.6: magic number, protocol, system, content, keys of the storages."""


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
    _check_values(state, path)
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
    with path.open("rb") as file:
        packed = file.read(4) == b"PK\x03\x04"  # how torch tells its own two formats apart
        file.seek(0)
        _check_archive(file, path) if packed else _check_pickles(file, _LEGACY_PICKLES, path)
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


def _check_archive(file: IO[bytes], path: Path) -> None:
    """Refuse what would unpack to more than the file holds. `torch.save` never compresses; `torch.load` unpacks all the same.

    Raises:
        BadInputError: an entry is compressed, the entries are larger than the file, or it is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise BadInputError(f"{path}: refused: it is compressed, which torch.save never does")
            declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
            if declared > size:
                raise BadInputError(f"{path}: refused: it says that it holds {declared} bytes, and has {size}")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as content:
                        _check_pickles(content, 1, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:  # encrypted, of a later version
        raise BadInputError(f"{path}: not a checkpoint, or truncated ({error})") from None


def _check_pickles(file: IO[bytes], count: int, path: Path) -> None:
    """Refuse the one name that `torch.load` allows and that makes much out of few bytes. Nothing is executed.

    Raises:
        BadInputError: it is there. What is no pickle is left to `torch.load`, which says so.
    """
    try:
        for _ in range(count):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL" and str(argument).split()[-1] == "bytearray":
                    raise BadInputError(f"{path}: refused: it makes a bytearray, which is no part of a state dict")
    except BadInputError:
        raise
    except (ValueError, IndexError, EOFError, MemoryError, zipfile.BadZipFile):
        return


def _check_values(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors whose values are not in the file.

    Raises:
        BadInputError: naming the first.
    """
    held: set[int] = set()
    total, size = 0, path.stat().st_size
    for name, tensor in state.items():
        if tensor.is_meta or tensor.layout is not torch.strided:
            kind = "has no values (device meta)" if tensor.is_meta else f"is not dense ({tensor.layout})"
            raise BadInputError(f"{path}: {name} {kind}: save the values as a dense tensor")
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            held.add(storage.data_ptr())
            total += storage.nbytes()
        if total > size:
            raise BadInputError(f"{path}: refused: {name} is larger than what the file holds")


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
