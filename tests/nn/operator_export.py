"""From a small network to a validated ONNX file, through a recipe as `msconv export` takes it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from msconv_deploy.exporting import export_recipe, load_model, load_recipe
from msconv_deploy.exporting.export import artefact_path
from msconv_deploy.model_files import read_model
from msconv_deploy.validation import InputOptions, ValidationOptions, validate_onnx_against_module
from tests.nn import operator_networks

EXPORTERS = ("dynamo", "legacy")
IMAGE = {"x": '["N", 3, "H", "W"]'}
EXTENTS = {"N": 2, "D": 5, "H": 9, "W": 8, "B": 3}


def integers(shape):
    return f'{{ shape = {shape}, dtype = "int64" }}'


@dataclass
class Exported:
    """An exported network that passed validation: the module in the file's precision, and the file."""

    module: torch.nn.Module
    path: Path

    @property
    def operators(self):
        return [node.op_type for node in read_model(self.path).graph.node]

    def validate(self, **inputs):
        """Validate once more, with other inputs (`InputOptions`). Returns how many sets of inputs were compared."""
        report = validate_onnx_against_module(self.path, self.module, ValidationOptions(inputs=InputOptions(**inputs)))
        assert report.verdict == "passed", report.reason
        return len({c.case for c in report.comparisons if c.runtime == "ort" and c.verdict == "passed"})


def export(folder, network, inputs, exporter, arguments="", precision="fp32", sizes=3):
    """Write recipe and checkpoint of a network, export it and validate it at ``sizes`` sizes or more.

    Args:
        network: name of a class of `operator_networks`.
        inputs: name -> shape or section of the recipe.
        arguments: of the class, in TOML.
    """
    dims = [dim for dim in EXTENTS if any(f'"{dim}"' in spec for spec in inputs.values())]
    path = folder / "operator.toml"
    path.write_text(
        f'[model]\nmodule = "{operator_networks.__file__}:{network}"\ncheckpoint = "weights.safetensors"\n'
        f"[model.arguments]\n{arguments}\n"
        "[inputs]\n" + "\n".join(f"{name} = {spec}" for name, spec in inputs.items()) + "\n"
        "[example]\n" + "\n".join(f"{dim} = {EXTENTS[dim]}" for dim in dims) + "\n"
        f'[export]\nexporter = "{exporter}"\nforms = ["portable"]\nprecision = ["{precision}"]\n'
    )
    torch.manual_seed(0)
    save_file({}, folder / "weights.safetensors")
    recipe = load_recipe(path)
    module = getattr(operator_networks, network)(**recipe.model.arguments)
    save_file(module.state_dict(), folder / "weights.safetensors")
    (sidecar,) = export_recipe(recipe, folder / "out", build_check=False)
    assert sidecar.verdict == "passed", sidecar.reason
    assert len(sidecar.sizes) >= sizes, sidecar.sizes
    return Exported(load_model(recipe, precision), artefact_path(recipe, "portable", precision, folder / "out"))
