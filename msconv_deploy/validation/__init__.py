"""Does the exported or rewritten file compute what the original computes? Comparison, tolerances, first divergence.

Importing this package imports onnx and NumPy; torch, ONNX Runtime and Polygraphy only when something is run.
"""

from msconv_deploy.ops.symbolic import size_text
from msconv_deploy.validation.inputs import InputOptions, parse_range, parse_ranges, parse_size
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.tolerance import policy_tolerance
from msconv_deploy.validation.validate import (
    validate_onnx_against_module,
    validate_onnx_against_onnx,
)

__all__ = [
    "InputOptions",
    "ValidationOptions",
    "parse_range",
    "parse_ranges",
    "parse_size",
    "policy_tolerance",
    "size_text",
    "validate_onnx_against_module",
    "validate_onnx_against_onnx",
]
