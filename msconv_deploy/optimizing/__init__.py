"""From file to file: read, inspect or optimize, verify, write, report. What `msconv inspect`, `optimize` and `diff` do.

Importing this package imports onnx and NumPy; ONNX Runtime only when something is verified. torch is never needed.
"""

from msconv_deploy.optimizing.diff import diff_files, diff_models
from msconv_deploy.optimizing.inspect import inspect_file
from msconv_deploy.optimizing.optimize import optimize_file
from msconv_deploy.optimizing.options import OptimizeOptions

__all__ = ["OptimizeOptions", "diff_files", "diff_models", "inspect_file", "optimize_file"]
