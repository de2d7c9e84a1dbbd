"""From a checkpoint and a recipe to ONNX files: portable, fused and plugin form, each with its sidecar."""

from msconv_deploy.exporting.export import check_artefacts, export_recipe
from msconv_deploy.exporting.model import load_model
from msconv_deploy.exporting.recipe import Recipe, load_recipe

__all__ = ["Recipe", "check_artefacts", "export_recipe", "load_model", "load_recipe"]
