"""Independent oracles in float64: tile, concatenate, convolve. Nothing here is shared with the implementation.

`tile_concat_conv` is the tiled semantics by its definition. `source_oracle` is the source semantics: a source's copies
continue into the padding along the axes that it lacks, so the padded tile is uniform there.
"""

from __future__ import annotations

import itertools

import numpy as np

PAD_MODE = {0: "constant", 1: "reflect", 2: "edge", 3: "wrap"}


def _pad(x, rows, columns, mode):
    widths = [(0, 0), (0, 0), rows, columns]
    return np.pad(x, widths, mode=PAD_MODE[mode])


def conv_valid(x, w, strides, dilations, group):
    """Direct convolution, one tap at a time. x [N,C,H,W], w [O,C/g,kh,kw] -> [N,O,H',W']."""
    n, c, h, wd = x.shape
    o, cg, kh, kw = w.shape
    assert c == cg * group
    ho = (h - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    wo = (wd - dilations[1] * (kw - 1) - 1) // strides[1] + 1
    y = np.zeros((n, o, ho, wo))
    og = o // group
    for g, u, v in itertools.product(range(group), range(kh), range(kw)):
        i, j = u * dilations[0], v * dilations[1]
        patch = x[
            :,
            g * cg : (g + 1) * cg,
            i : i + (ho - 1) * strides[0] + 1 : strides[0],
            j : j + (wo - 1) * strides[1] + 1 : strides[1],
        ]
        y[:, g * og : (g + 1) * og] += np.einsum("nchw,oc->nohw", patch, w[g * og : (g + 1) * og, :, u, v])
    return y


def tile(sources, height, width):
    """Every source expanded to [N,C,H,W]."""
    n = max(s.shape[0] for s in sources.values())
    lift = {
        "nchw": lambda s: s,
        "nch": lambda s: s[:, :, :, None],
        "ncw": lambda s: s[:, :, None, :],
        "nc": lambda s: s[:, :, None, None],
    }
    return {
        k: np.broadcast_to(lift[k](s), (n, s.shape[1], height, width)).astype(np.float64) for k, s in sources.items()
    }


def extents(sources):
    height = next((s.shape[2] for k, s in sources.items() if k in ("nchw", "nch")), None)
    width = next((s.shape[3 if k == "nchw" else 2] for k, s in sources.items() if k in ("nchw", "ncw")), None)
    return height, width


def tile_concat_conv(config, sources, weights, bias):
    """Tiled semantics. Groups apply to nchw alone, so each source is convolved for itself and the results summed."""
    height, width = extents(sources)
    t, left, b, right = config.pads
    y = 0
    for name, x in tile(sources, height, width).items():
        padded = _pad(x, (t, b), (left, right), int(config.padding_mode))
        group = config.group if name == "nchw" else 1
        y = y + conv_valid(padded, weights[name].astype(np.float64), config.strides, config.dilations, group)
    return y if bias is None else y + bias.astype(np.float64)[:, None, None]


def source_oracle(config, sources, weights, bias):
    """Source semantics: padding only along owned axes; along the others the copies continue for ever."""
    height, width = extents(sources)
    t, left, b, right = config.pads
    kh, kw = config.kernel_shape
    reach = [(k - 1) * d + 1 for k, d in zip(config.kernel_shape, config.dilations, strict=True)]
    mode = int(config.padding_mode)
    y = 0
    for name, x in sources.items():
        x, w = x.astype(np.float64), weights[name].astype(np.float64)
        owns_h, owns_w = name in ("nchw", "nch"), name in ("nchw", "ncw")
        x = {
            "nchw": x,
            "nch": x[..., None] if name == "nch" else x,
            "ncw": x[:, :, None] if name == "ncw" else x,
            "nc": x[:, :, None, None] if name == "nc" else x,
        }[name]
        x = _pad(x, (t, b) if owns_h else (0, 0), (left, right) if owns_w else (0, 0), mode)
        full_h = reach[0] if height is None else height + t + b
        full_w = reach[1] if width is None else width + left + right
        x = np.broadcast_to(x, (*x.shape[:2], x.shape[2] if owns_h else full_h, x.shape[3] if owns_w else full_w))
        full = np.zeros((*w.shape[:2], kh, kw))
        full[:, :, slice(None) if owns_h else kh - 1, slice(None) if owns_w else kw - 1] = w
        y = y + conv_valid(x, full, config.strides, config.dilations, 1 if name == "nc" else config.group)
    return y if bias is None else y + bias.astype(np.float64)[:, None, None]


def difference(a, b):
    """max|a-b| / max|b| over the whole tensor (DESIGN's definition)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)) if b.size else 0.0


def border_and_interior(config, height, width):
    """Boolean [H', W']: is any tap of the output pixel outside the image?"""

    def outside(axis, extent):
        if extent is None:
            return np.zeros(1, bool)
        j = np.arange(axis.output_extent(extent))[:, None] * axis.stride - axis.pad_before
        taps = j + np.arange(axis.kernel) * axis.dilation
        return ((taps < 0) | (taps >= extent)).any(1)

    return outside(config.rows, height)[:, None] | outside(config.columns, width)[None, :]


def scale_of(case, expected):
    """max|expected|, but at least 1% of what its terms add up to without their signs.

    A few outputs can all cancel by chance to nearly nothing; float32 then has nothing to be relative to.
    """
    positive = [{k: np.abs(v) for k, v in part.items()} for part in (case.sources, case.weights)]
    oracle = tile_concat_conv if case.config.tiled else source_oracle
    total = oracle(case.config, *positive, None if case.bias is None else np.abs(case.bias))
    return max(np.abs(expected).max(), 0.01 * total.max())
