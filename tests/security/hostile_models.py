"""Models whose every name attacks who reads it: a terminal, a markup language, a browser."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.tile_models import tiled_conv

ESCAPE = "\x1b[2J\x1b]52;c;cHduZWQ=\x07\x9b31m\u202e\r\b"
"""Clear the screen, write to the clipboard, colour by the one-character CSI, turn the line around, go back and overwrite."""

MARKUP = "[/bold][link=https://example.com]"
HTML = "<script>alert(1)</script><img src=x onerror=\"alert(2)\">' onload='alert(3)"
HOSTILE = ESCAPE + MARKUP + HTML


def hostile_model(path: Path, ending: str = HOSTILE) -> Path:
    """A tile-concat-conv in which ``ending`` ends the name of every node, tensor, input, output and dynamic dim."""
    model = onnx.load(tiled_conv(path))
    graph = model.graph
    graph.name += ending
    for node in graph.node:
        node.name += ending
        node.input[:] = [name + ending for name in node.input]
        node.output[:] = [name + ending for name in node.output]
    for weight in graph.initializer:
        weight.name += ending
    for value in (*graph.input, *graph.output):
        value.name += ending
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param += ending
    onnx.save(model, path)
    return path
