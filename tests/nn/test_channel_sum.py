"""ChannelSumConv2d against (unfolded windows * filter).sum(channels) in float64; its gradients, memory, export, refusals."""

import pytest

torch = pytest.importorskip("torch", reason="the modules need torch: pip install 'msconv-deploy[torch]'")
from hypothesis import given, settings  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import ChannelSumConv2d  # noqa: E402
from tests.nn.memory import peak_bytes  # noqa: E402
from tests.nn.operator_export import IMAGE, export  # noqa: E402
from tests.nn.windows import windows  # noqa: E402
from tests.oracle import difference  # noqa: E402


def formula(case, x, weight, bias):
    """[N, L, kh, kw] by the definition."""
    y = (case.unfolded(x) * weight.flatten(1)[None, :, :, None]).sum(1)
    return y.transpose(1, 2).unflatten(2, case.kernel) + bias


def module_of(case, layout="windows", dtype=torch.float64):
    torch.manual_seed(case.seed)
    return ChannelSumConv2d(case.channels, case.kernel, **case.arguments, layout=layout, dtype=dtype)


@settings(max_examples=200, deadline=None)
@given(windows())
def test_equals_the_formula(case):
    module, x = module_of(case), case.image
    expected = formula(case, x, module.weight, module.bias)
    actual = module(x)
    assert actual.shape == (case.batch, case.outputs[0] * case.outputs[1], *case.kernel)
    assert difference(actual.detach(), expected.detach()) < 1e-12
    image = module_of(case, "taps")(x)
    assert torch.equal(image.flatten(2).transpose(1, 2).unflatten(2, case.kernel), actual)
    assert image.shape[2:] == case.outputs


@settings(max_examples=10, deadline=None)
@given(windows(max_kernel=3, largest=5))
def test_gradients(case):
    module, x = module_of(case), case.image.requires_grad_()

    def call(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, (x, module.weight, module.bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_keeps_its_dtype(dtype, tolerance):
    torch.manual_seed(0)
    module, x = ChannelSumConv2d(4, 3, padding=1, bias=False).to(dtype), torch.randn(1, 4, 6, 5).to(dtype)
    expected = module.double()(x.double()).detach()
    actual = module.to(dtype)(x).detach()
    assert actual.dtype == dtype
    assert difference(actual.double(), expected) < tolerance


def test_without_bias_and_with_same_padding():
    module = ChannelSumConv2d(2, (2, 3), padding="same", bias=False, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    unfolded = torch.nn.functional.unfold(torch.nn.functional.pad(x, (1, 1, 0, 1)), (2, 3)).unflatten(1, (2, 6))
    expected = (unfolded * module.weight.flatten(1)[None, :, :, None]).sum(1).transpose(1, 2).unflatten(2, (2, 3))
    assert difference(module(x).detach(), expected.detach()) < 1e-14
    assert set(module.state_dict()) == {"weight"}
    assert "pads=(0, 1, 1, 1)" in repr(module)


def test_there_is_no_tensor_of_patches():
    """It would have C*kh*kw channels, nine times the image; the result and the products have kh*kw."""
    module, x = ChannelSumConv2d(32, 3, padding=1, layout="taps"), torch.randn(1, 32, 64, 64)

    def unfolded():
        return (
            torch.nn.functional.unfold(x, 3, padding=1).unflatten(1, (32, 9)) * module.weight.flatten(1, 2)[..., None]
        ).sum(1)

    with torch.no_grad():
        assert peak_bytes(lambda: module(x)) * 8 < peak_bytes(unfolded)


@pytest.mark.parametrize(
    ("exporter", "arguments", "precision"),
    [
        ("dynamo", "", "fp32"),
        ("dynamo", 'padding = [1, 0, 2, 1]\npadding_mode = "reflect"\nlayout = "windows"', "fp16"),
        ("legacy", 'padding = "valid"\nlayout = "windows"', "fp32"),
    ],
)
def test_export(tmp_path, exporter, arguments, precision):
    exported = export(tmp_path, "ChannelSum", IMAGE, exporter, arguments, precision)
    assert not {"Gather", "Loop", "Scan"} & set(exported.operators)
    assert exported.operators.count("Conv") == (3 if not arguments else 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelSumConv2d(0, 3), "in_channels must be an integer of at least 1, but is 0"),
        (lambda: ChannelSumConv2d(2, (3, 0)), r"kernel_size must be .* but is \(3, 0\)"),
        (lambda: ChannelSumConv2d(2, 3, stride=(1, 2, 3)), "stride must be an integer or 2 integers"),
        (lambda: ChannelSumConv2d(2, 3, dilation=0), "dilation must be .* at least 1"),
        (lambda: ChannelSumConv2d(2, 3, padding=(1, 2, 3)), r"padding must be .* but is \(1, 2, 3\)"),
        (lambda: ChannelSumConv2d(2, 3, padding=-1), "padding must be .* at least 0, but is -1"),
        (lambda: ChannelSumConv2d(2, 3, padding="full"), 'known words are "same"'),
        (lambda: ChannelSumConv2d(2, 3, padding="same", stride=2), 'padding "same" needs stride 1'),
        (lambda: ChannelSumConv2d(2, 3, padding_mode="mirror"), "padding_mode is 'mirror'; known are zeros, reflect"),
        (lambda: ChannelSumConv2d(2, 3, layout="rows"), 'layout is \'rows\'; known are "windows" and "taps"'),
        (lambda: ChannelSumConv2d(2, 3)(torch.zeros(2, 5, 5)), r"must be \[N, 2, H, W\], but is \[2, 5, 5\]"),
        (lambda: ChannelSumConv2d(2, 3)(torch.zeros(1, 3, 5, 5)), r"must be \[N, 2, H, W\], but is \[1, 3, 5, 5\]"),
        (lambda: ChannelSumConv2d(2, 3)(torch.zeros(1, 2, 5, 2)), "dimension 1 .* smaller than the kernel"),
        (lambda: ChannelSumConv2d(2, 3)(torch.zeros(1, 2, 5, 5).half()), "torch.float16, but the weights are torch.float32"),
        (
            lambda: ChannelSumConv2d(2, 3, padding=3, padding_mode="reflect")(torch.zeros(1, 2, 3, 9)),
            "padding_mode reflect with padding 3 needs at least 4",
        ),
        (
            lambda: ChannelSumConv2d(2, 3, padding=3, padding_mode="circular")(torch.zeros(1, 2, 9, 2)),
            "padding_mode circular with padding 3 needs at least 3",
        ),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=f"^ChannelSumConv2d: .*{message}"):
        build()
