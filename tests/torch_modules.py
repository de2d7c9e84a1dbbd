"""Test cases as PyTorch modules and tensors. Import it only where torch is known to be there."""

import torch

from msconv_deploy.nn import MSConv2d
from msconv_deploy.nn.functional import class_membership

NAMES = ("nchw", "nch", "ncw", "nc")


def module_of(case, dtype=torch.float64):
    """An MSConv2d with the case's weights. Asymmetric pads have no argument: the configuration is set directly."""
    config = case.config
    module = MSConv2d(
        case.in_channels,
        case.out_channels,
        config.kernel_shape,
        config.strides,
        0,
        config.dilations,
        config.group,
        bool(config.has_bias),
        config.padding_mode.name.lower(),
        None,
        dtype,
        config.padding_semantics.name.lower(),
    )
    module.config = config
    if config.tiled:
        module._row_membership = class_membership(config, config.rows).to(dtype)
        module._column_membership = class_membership(config, config.columns).to(dtype)
    with torch.no_grad():
        for name, weight in module.weights.items():
            weight.copy_(torch.from_numpy(case.weights[name]))
        if case.bias is not None:
            module.bias.copy_(torch.from_numpy(case.bias))
    return module


def tensors(case, dtype=torch.float64):
    return {name: torch.from_numpy(source).to(dtype) for name, source in case.sources.items()}


def call(module, sources):
    return module(*(sources.get(name) for name in NAMES))
