"""Graph surgery: find tile-concat-conv in anybody's ONNX model and rewrite it without the tile.

``engine`` knows tensors (extents by name, constants, decomposition into segments with their cores) and how to edit a
graph; ``rules`` hold the rewrites, one module each.
"""
