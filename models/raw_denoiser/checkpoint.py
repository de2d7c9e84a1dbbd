"""Where the checkpoint and the results are, and the checkpoint file: weights as fp32 safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.raw_denoiser.network import RawDenoiser
from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.files import atomic_write

FOLDER = Path(__file__).resolve().parent
CHECKPOINT = FOLDER / "raw_denoiser.safetensors"
RESULTS = FOLDER / "results.json"

#: Which training the checkpoint in the repository comes from.
SHIPPED_VARIANT = "msconv"
SHIPPED_SEED = 0


def save_checkpoint(model: RawDenoiser, path: Path) -> None:
    """Write the weights; the file appears complete or not at all, and replaces an earlier one."""
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path, force=True) as temporary:
        save_file(tensors, temporary)


def load_checkpoint(path: Path = CHECKPOINT, variant: str = SHIPPED_VARIANT) -> RawDenoiser:
    """The network with these weights, in evaluation mode; every key must match.

    Raises:
        NotAvailableError: the file is not there.
        BadInputError: it is not a safetensors file, or it belongs to another network.
    """
    if not path.is_file():
        raise NotAvailableError(f"{path}: not found; `python -m models.raw_denoiser.train` makes it")
    model = RawDenoiser(variant=variant)
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise BadInputError(f"{path}: not a safetensors file ({error})") from error
    except RuntimeError as error:
        raise BadInputError(f"{path}: not the weights of RawDenoiser({variant!r}): {error}") from error
    return model.eval()
