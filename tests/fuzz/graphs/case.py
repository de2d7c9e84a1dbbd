"""A model with what is needed to check it, and the file that keeps both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import onnx

_KEY = "msconv.fuzz"


@dataclass
class Case:
    """A model and how to optimize and run it.

    Attributes:
        model: valid for ``onnx.checker``.
        sizes: values of its symbolic dims to run at.
        when, allow, form: options of ``optimize_model``.
        verified: whether the product's own verification has to agree as well.
        deployed: whether the result runs with ONNX Runtime's optimizations, as users run it; the original runs without.
        parts: scenes and dressings that it was made of.
    """

    model: onnx.ModelProto
    sizes: list[dict[str, int]]
    when: str = "always"
    allow: tuple[str, ...] = ()
    form: str = "portable"
    verified: bool = False
    deployed: bool = False
    parts: tuple[str, ...] = field(default=())


def save(case: Case, path: Path, note: str = "") -> None:
    """Write a case as one ONNX file: its options are metadata, the note is the model's doc string."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    options = {
        "sizes": case.sizes, "when": case.when, "allow": list(case.allow), "form": case.form, "verified": case.verified,
        "deployed": case.deployed, "parts": list(case.parts),
    }  # fmt: skip
    model.metadata_props.add(key=_KEY, value=json.dumps(options))
    model.doc_string = note
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> Case:
    """A case that :func:`save` wrote."""
    model = onnx.load_model(path)
    (entry,) = [p for p in model.metadata_props if p.key == _KEY]
    options = json.loads(entry.value)
    model.metadata_props.remove(entry)
    options["allow"], options["parts"] = tuple(options["allow"]), tuple(options["parts"])
    return Case(model, **options)
