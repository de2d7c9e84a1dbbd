"""The network of a recipe: its class, its arguments, its checkpoint."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.exporting.checkpoint import load_into, read_state_dict
from msconv_deploy.exporting.recipe import Precision, Recipe
from msconv_deploy.ops.symbolic import size_text

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def load_model(recipe: Recipe, precision: Precision = "fp32") -> nn.Module:
    """The network with its weights, in evaluation mode and in the precision's dtype.

    The recipe names code that is imported and run: recipes are trusted, checkpoints are not.

    Raises:
        BadInputError: the class, its arguments or the checkpoint do not fit; the message names the recipe's key.
    """
    network = _build(recipe)
    load_into(network, read_state_dict(recipe.checkpoint), str(recipe.checkpoint))
    return network.eval().to(TORCH_DTYPES[precision])


def example_inputs(
    recipe: Recipe, precision: Precision, seed: int = 0, size: dict[str, int] | None = None
) -> dict[str, Tensor]:
    """Inputs of the traced size, or of another: standard normal floats, zeros and ones for integers and booleans."""
    size = recipe.example if size is None else size
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for name, spec in recipe.inputs.items():
        shape = [size[d] if isinstance(d, str) else d for d in spec.shape]
        if spec.dtype == "float":
            inputs[name] = torch.randn(shape, generator=generator).to(TORCH_DTYPES[precision])
        else:
            bits = torch.randint(0, 2, shape, generator=generator)
            inputs[name] = bits.bool() if spec.dtype == "bool" else bits
    return inputs


def check_example(recipe: Recipe, network: nn.Module, seed: int = 0) -> None:
    """Run the network at the example size, in float32: some CPUs do not compute every operator in float16.

    Exporters do not do that: what they trace may hold at other sizes only, such as images with as many rows as columns.

    Raises:
        BadInputError: it raised something; the message has the inputs as the recipe says them, and what it said.
    """
    inputs = example_inputs(recipe, "fp32", seed)
    subject = network if all(p.dtype != torch.float16 for p in network.parameters()) else copy.deepcopy(network).float()
    try:
        with torch.no_grad():
            subject(**inputs)
    except MemoryError:
        raise
    except Exception as error:  # whatever the network's code raises is the finding
        lines = str(error).strip().splitlines() or [""]
        shapes = ", ".join(
            f"{name} [{', '.join(map(str, spec.shape))}] = {list(inputs[name].shape)}"
            for name, spec in recipe.inputs.items()
        )
        raise BadInputError(
            f"{recipe.path}: {type(network).__name__} does not run at the recipe's example size "
            f"{size_text(recipe.example)}: {type(error).__name__}: {lines[0][:300]}. Correct [inputs] or [example]; "
            f"its inputs were {shapes}"
        ) from error


def _build(recipe: Recipe) -> nn.Module:
    place, class_name = recipe.model.module.split(":")
    where = f"{recipe.path}: model.module"
    module = _import_file(recipe.path.parent / place, where) if place.endswith(".py") else _import_name(place, where)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        raise BadInputError(f"{where}: {place} has no nn.Module {class_name!r}; it has {', '.join(classes) or 'none'}")
    try:
        return kind(**recipe.model.arguments)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{recipe.path}: model.arguments do not fit {class_name}: {error}") from error


def _import_name(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInputError(f"{where}: cannot import {name}: {error}") from error


def _import_file(path: Path, where: str) -> ModuleType:
    """Import a file under a name of its own, so that it meets no installed module."""
    if not path.is_file():
        raise BadInputError(f"{where}: no such file {path}")
    name = f"msconv_recipe_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BadInputError(f"{where}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
