"""msconv-deploy: find the work that is spent on copies, compute it once instead, and prove that nothing changed.

Importing this package is cheap: torch, TensorRT and Polygraphy are imported only by the adapters that need them.
"""

__version__ = "0.1.0"
