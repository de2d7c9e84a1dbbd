"""A recipe: which checkpoint becomes which artefact. A TOML file, checked as a whole before anything is done.

    [model]
    module = "../models/raw_denoiser/network.py:RawDenoiser"   # file.py:Class, or package.module:Class
    checkpoint = "../models/raw_denoiser/raw_denoiser.safetensors"
    [model.arguments]                                          # keyword arguments of the class
    width = 32

    [inputs]                       # in the order of forward's parameters; a name is a dynamic dim, shared by its name
    nchw = ["N", 4, "H", "W"]
    nch = ["N", 2, "H"]

    [example]                      # extents of the dynamic dims while the model is traced
    N = 2
    H = 24
    W = 32

Paths are relative to the recipe.
"""

from __future__ import annotations

import difflib
import math
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from msconv_deploy.errors import BadInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Precision = Literal["fp32", "fp16"]
Exporter = Literal["dynamo", "legacy"]
FormName = Literal["portable", "fused", "plugin"]
OPSETS: dict[str, tuple[int, int]] = {"dynamo": (17, 28), "legacy": (17, 23)}
"""Exporter -> oldest and newest opset that it writes (torch 2.13)."""


_MOST_ELEMENTS = 1 << 31
"""Of one input: 8 GiB in float32."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(_Section):
    """Where the network comes from."""

    module: str = Field(description="file.py:Class or package.module:Class")
    checkpoint: Path = Field(description="safetensors, or a state dict that torch.load(weights_only=True) reads")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")

    @field_validator("module")
    @classmethod
    def _has_class(cls, value: str) -> str:
        if value.count(":") != 1 or not all(value.split(":")):
            raise ValueError('must be "file.py:Class" or "package.module:Class"')
        place = value.partition(":")[0]
        if not place.endswith(".py") and not all(part.isidentifier() for part in place.split(".")):
            raise ValueError(f"{place!r} is neither a file NAME.py nor the dotted name of a package or module")
        return value


class InputSection(_Section):
    """One input of forward."""

    shape: list[int | str] = Field(min_length=1)
    dtype: Literal["float", "int64", "bool"] = Field(default="float", description="float follows the precision")

    @field_validator("shape")
    @classmethod
    def _dims(cls, value: list[int | str]) -> list[int | str]:
        for dim in value:
            if (isinstance(dim, int) and dim < 1) or (isinstance(dim, str) and not dim.isidentifier()):
                raise ValueError(f"dimension {dim!r} must be a positive integer or a name")
        return value


class ExportSection(_Section):
    """How it is written."""

    exporter: Exporter = "dynamo"
    opset: int = 18
    forms: list[FormName] = Field(default=["portable", "fused", "plugin"], min_length=1)
    precision: list[Precision] = Field(default=["fp32", "fp16"], min_length=1)
    outputs: list[str] = Field(default=["y"], min_length=1)

    @field_validator("forms", "precision")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        return list(dict.fromkeys(value))

    @field_validator("outputs")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if any(not name.strip() for name in value):
            raise ValueError("an output needs a name")
        if twice := [name for name in dict.fromkeys(value) if value.count(name) > 1]:
            raise ValueError(f"{', '.join(twice)} is named twice")
        return value


class ValidationSection(_Section):
    """Sizes at which the artefacts are compared with PyTorch; empty: chosen from the recipe's dims."""

    sizes: list[dict[str, int]] = Field(default_factory=list)


class Recipe(_Section):
    """A checked recipe. ``path`` is the file; :attr:`name`, its stem, names the artefacts."""

    path: Path
    model: ModelSection
    inputs: dict[str, InputSection] = Field(min_length=1)
    example: dict[str, int] = Field(default_factory=dict)
    export: ExportSection = ExportSection()
    validation: ValidationSection = ValidationSection()

    @field_validator("inputs", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {"shape": v} if isinstance(v, list) else v for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _dims_have_examples(self) -> Recipe:
        used = self.dynamic_dims
        if missing := [d for d in used if d not in self.example]:
            raise ValueError(f"example: no extent for the dynamic dim {', '.join(missing)}")
        if unknown := [d for d in self.example if d not in used]:
            raise ValueError(
                f"example: {', '.join(unknown)} is no dim of any input; dims are {', '.join(used) or 'none'}"
            )
        if small := [d for d, n in self.example.items() if n < 2]:
            raise ValueError(
                f"example: {', '.join(small)} must be at least 2: an exporter takes an extent of 1 for a constant"
            )
        if both := [name for name in self.export.outputs if name in self.inputs]:
            raise ValueError(f"export.outputs: {', '.join(both)} is an input: an output needs a name of its own")
        for size in self.validation.sizes:
            if set(size) != set(used):
                raise ValueError(f"validation.sizes: {size} must give an extent to each of {', '.join(used)}")
        for where, size in (("example", self.example), *(("validation.sizes", s) for s in self.validation.sizes)):
            self._check_size(where, size)
        return self

    def _check_size(self, where: str, size: dict[str, int]) -> None:
        """Extents of at least 1, and inputs that a machine can hold."""
        if wrong := [d for d, n in size.items() if n < 1]:
            raise ValueError(f"{where}: {', '.join(wrong)} must be at least 1")
        for name, spec in self.inputs.items():
            elements = math.prod(size[d] if isinstance(d, str) else d for d in spec.shape)
            if elements > _MOST_ELEMENTS:
                raise ValueError(f"{where}: input {name} would have {elements:,} values: too many to run")

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def dynamic_dims(self) -> list[str]:
        """Names of the dynamic dims, in order of appearance."""
        return list(dict.fromkeys(d for spec in self.inputs.values() for d in spec.shape if isinstance(d, str)))

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.path.parent / self.model.checkpoint

    def replaced(
        self,
        checkpoint: Path | None = None,
        forms: list[str] | None = None,
        precision: list[str] | None = None,
        opset: int | None = None,
        exporter: str | None = None,
    ) -> Recipe:
        """This recipe with some values given instead; the result is checked like a file.

        Raises:
            BadInputError: a value is not valid.
        """
        changes = {"forms": forms, "precision": precision, "opset": opset, "exporter": exporter}
        content = self.model_dump()
        content["export"] |= {key: value for key, value in changes.items() if value}
        if checkpoint is not None:
            content["model"]["checkpoint"] = checkpoint.resolve()
        return _checked(content, str(self.path))


def load_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        BadInputError: listing every problem with the key where it is; a misspelt key with its likeliest meaning.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such recipe") from None
    except (IsADirectoryError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: not a recipe in TOML: {error}") from error
    if "path" in content:
        raise BadInputError(f"{path}: path: unknown key")
    return _checked({**content, "path": path}, str(path))


def _checked(content: dict[str, Any], where: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(e) for e in error.errors())
        raise BadInputError(f"{where}: {problems}") from None
    check_opset(recipe.export.exporter, recipe.export.opset, where)
    return recipe


def check_opset(exporter: Exporter, opset: int, where: str) -> None:
    """Raises BadInputError if the exporter does not write this opset."""
    oldest, newest = OPSETS[exporter]
    if not oldest <= opset <= newest:
        other = ", ".join(f"{name} {low} to {high}" for name, (low, high) in OPSETS.items())
        raise BadInputError(
            f"{where}: opset {opset} is not written by the {exporter} exporter; exporters write {other}"
        )


def _describe(error: Any) -> str:
    """One pydantic error as ``section.key: what (did you mean ...)``."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return (
            f"{where}: {error['msg'].removeprefix('Value error, ')}"
            if where
            else error["msg"].removeprefix("Value error, ")
        )
    *parents, key = error["loc"]
    section: Any = Recipe
    for parent in parents:
        field = (
            section.model_fields.get(parent) if isinstance(section, type) and issubclass(section, BaseModel) else None
        )
        section = InputSection if parents[0] == "inputs" else (field.annotation if field else None)
    known = list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []
    known = [k for k in known if k != "path"]
    guess = difflib.get_close_matches(str(key), known, 1)
    hint = f"did you mean {guess[0]!r}?" if guess else f"known keys are {', '.join(known)}"
    return f"{where}: unknown key; {hint}"
