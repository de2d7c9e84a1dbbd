"""Conformance with docs/spec.md: every implementation of the operator, on the same cases, against one oracle.

Each implementation is a function from a case to [N, O, H', W']; those whose runtime is absent are skipped with the
reason. New implementations join the table.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from msconv_deploy.errors import ExitCode
from msconv_deploy.ops import reference
from msconv_deploy.ops.configuration import Activation, MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.forms import Form
from msconv_deploy.ops.schema import schema
from tests.ops.test_lowerings import fused_model, run
from tests.oracle import border_and_interior, extents, scale_of, source_oracle, tile_concat_conv
from tests.strategies import cases

SPEC = (Path(__file__).parents[1] / "docs" / "spec.md").read_text()


def numpy_reference(case):
    return reference.msconv2d(case.config, case.sources, case.weights, case.bias)


def function_body(case):
    return run(fused_model(case), case)


def module_float64(case):
    from tests.torch_modules import call, module_of, tensors

    return call(module_of(case), tensors(case)).detach().numpy()


def module_float32(case):
    import torch

    from tests.torch_modules import call, module_of, tensors

    return call(module_of(case, torch.float32), tensors(case, torch.float32)).detach().numpy()


def kernels_float32(case):
    from tests.plugins.kernel_cases import NO_COMPILER, build_host, kernels, problem

    if build_host.compiler() is None:
        pytest.skip(NO_COMPILER)
    return kernels().run(problem(case), case.sources, case.weights, case.bias).astype(np.float64)


IMPLEMENTATIONS = {
    "reference": (numpy_reference, 1e-12, None),
    "function body": (function_body, 1e-5, None),
    "module float64": (module_float64, 1e-12, "torch"),
    "module float32": (module_float32, 1e-5, "torch"),
    "kernels float32": (kernels_float32, 1e-5, None),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_every_implementation_conforms(name, case):
    implementation, tolerance, needs = IMPLEMENTATIONS[name]
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}: pip install 'msconv-deploy[{needs}]'")
    case = case.astype(np.float32).astype(np.float64)
    oracle = tile_concat_conv if case.config.tiled else source_oracle
    expected = oracle(case.config, case.sources, case.weights, case.bias)
    actual = implementation(case)
    assert actual.shape == expected.shape
    scale = scale_of(case, expected)
    border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
    for region in (border, ~border):
        assert np.abs(actual - expected)[region].max(initial=0) <= tolerance * scale


def test_the_specification_names_what_the_code_has():
    config = MSConv2dConfig((1, 0, 0, 0), (1, 1))
    for attribute in config.attributes():
        assert f"`{attribute}`" in SPEC, attribute
    assert set(schema().attributes) == {*config.attributes(), "plugin_version", "plugin_namespace"}
    for kind in (PaddingSemantics, PaddingMode, Activation):
        listed = ", ".join(f"{value.value} {value.name.lower()}" for value in kind)
        assert listed in SPEC, listed
    for form in Form:
        assert f"{form.value} form" in SPEC
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", SPEC, re.MULTILINE)}
    assert codes == {int(code) for code in ExitCode}
