"""DynamicConv2d against all filters at once in float64: chunks, gradients, memory, export, refusals."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the modules need torch: pip install 'msconv-deploy[torch]'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import DynamicConv2d  # noqa: E402
from tests.nn.memory import expanded, peak_bytes  # noqa: E402
from tests.nn.operator_export import IMAGE, export  # noqa: E402
from tests.nn.operator_networks import filters  # noqa: E402
from tests.nn.windows import windows  # noqa: E402
from tests.oracle import difference  # noqa: E402


class Constant(nn.Module):
    """A filter network that gives every patch the same filters."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, patches):
        return self.weight.flatten(1).expand(len(patches), -1, -1)


def module_of(case, outputs, **arguments):
    torch.manual_seed(case.seed)
    size = case.channels * case.kernel[0] * case.kernel[1]
    network = filters(size, outputs)
    module = DynamicConv2d(case.channels, outputs, case.kernel, network, **case.arguments, **arguments)
    return module.double()


def formula(case, module, x):
    """[N, O, H', W'] with all filters at once."""
    patches = case.unfolded(x).flatten(1, 2).transpose(1, 2)  # [N, L, K]
    weights = module.filter_network(patches).unflatten(2, (module.out_channels, -1))
    y = (weights * patches[:, :, None]).sum(-1) + module.bias
    return y.transpose(1, 2).unflatten(2, case.outputs)


@settings(max_examples=150, deadline=None)
@given(windows(), st.integers(1, 3), st.sampled_from((None, 1, 3, 7, 20, 90)), st.booleans())
def test_equals_the_formula_for_any_chunk(case, outputs, chunk_size, checkpoint):
    module = module_of(case, outputs, chunk_size=chunk_size, checkpoint=checkpoint)
    actual = module(case.image)
    assert actual.shape == (case.batch, outputs, *case.outputs)
    assert actual.is_contiguous()
    assert difference(actual.detach(), formula(case, module, case.image).detach()) < 1e-12
    with torch.no_grad():  # chunks are written in place
        assert torch.equal(module(case.image), actual)


@settings(max_examples=50, deadline=None)
@given(windows(), st.integers(1, 30))
def test_is_an_ordinary_convolution_where_the_filter_is_constant(case, chunk_size):
    weight = case.random(2, case.channels, *case.kernel)
    module = DynamicConv2d(case.channels, 2, case.kernel, Constant(weight), **case.arguments, chunk_size=chunk_size)
    module = module.double()
    expected = nn.functional.conv2d(
        case.padded(case.image), weight, module.bias, case.stride, 0, case.dilation
    )  # fmt: skip
    assert difference(module(case.image).detach(), expected.detach()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(windows(), st.integers(1, 30), st.booleans())
def test_gradients_are_those_of_the_formula(case, chunk_size, checkpoint):
    module = module_of(case, 2, chunk_size=chunk_size, checkpoint=checkpoint)
    x = case.image.requires_grad_()
    weights = case.random(case.batch, 2, *case.outputs)
    parameters = dict(module.named_parameters())
    actual = torch.autograd.grad((module(x) * weights).sum(), [x, *parameters.values()])
    padded = case.padded(torch.arange(x[0, 0].numel()).reshape(1, 1, *x.shape[2:]).double() + 1)
    # The formula's own gradient through NumPy's padding: padded positions are gathered from the image.
    places = padded.long().flatten()
    image = torch.cat([torch.zeros(*x.shape[:2], 1, dtype=x.dtype), x.flatten(2)], 2)
    spread = image[:, :, places].reshape(*x.shape[:2], *padded.shape[2:])
    patches = nn.functional.unfold(spread, case.kernel, case.dilation, 0, case.stride).transpose(1, 2)
    y = (module.filter_network(patches).unflatten(2, (2, -1)) * patches[:, :, None]).sum(-1) + module.bias
    expected = torch.autograd.grad(
        (y.transpose(1, 2).unflatten(2, case.outputs) * weights).sum(), [x, *parameters.values()]
    )
    for name, one, other in zip(["x", *parameters], actual, expected, strict=True):
        # Relative to all gradients: a single one may be nothing but rounding.
        scale = max(float(g.abs().max()) for g in expected)
        assert float((one - other).abs().max()) <= 1e-12 * max(scale, 1), name


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradcheck(checkpoint):
    torch.manual_seed(0)
    module = DynamicConv2d(2, 2, (2, 3), filters(12, 2), (2, 1), (1, 0, 0, 1), chunk_size=3, checkpoint=checkpoint)
    names, parameters = zip(*module.double().named_parameters(), strict=True)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    # Parameters that functional_call puts in are gone when a checkpointed chunk is recomputed.
    if checkpoint:
        assert torch.autograd.gradcheck(module, (x,))
    else:
        assert torch.autograd.gradcheck(call, (x, *parameters))


def test_random_filter_networks_recompute_the_same_numbers():
    """Dropout draws the same mask again when a checkpointed chunk is recomputed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 16))
    module = DynamicConv2d(2, 2, 2, network, chunk_size=4)
    kept = copy.deepcopy(module)
    kept.checkpoint = False
    x, gradients = torch.randn(1, 2, 5, 5), []
    for each in (module, kept):
        torch.manual_seed(1)
        each(x).square().sum().backward()
        gradients.append(network_gradients(each))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def network_gradients(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_keeps_its_dtype(dtype, tolerance):
    torch.manual_seed(0)
    module, x = DynamicConv2d(3, 4, 3, filters(27, 4), padding=1).to(dtype), torch.randn(2, 3, 6, 5).to(dtype)
    expected = copy.deepcopy(module).double()(x.double()).detach()
    actual = module(x).detach()
    assert actual.dtype == dtype
    assert difference(actual.double(), expected) < tolerance


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("multiply", [False, True], ids=["einsum", "product"])
def test_peak_memory_is_8_times_less_than_expanded(train, multiply):
    """The issue's case: a 64x64 image, 3x3 patches, 32 outputs. ``benchmarks/operators.py`` has more of it."""
    torch.manual_seed(0)
    network = filters(27, 32, 16)
    module = DynamicConv2d(3, 32, 3, network, padding=1, bias=False)
    x = torch.randn(1, 3, 64, 64, requires_grad=train)

    def measured(function):
        def run():
            with torch.set_grad_enabled(train):
                y = function(x)
                if train:
                    y.square().mean().backward()
            return y

        return peak_bytes(run)

    assert measured(module) * 8 <= measured(lambda x: expanded(network, x, 3, multiply, padding=1))


@pytest.mark.parametrize(
    ("exporter", "arguments", "precision"),
    [
        ("dynamo", "", "fp32"),
        ("dynamo", 'chunk_size = 7\npadding_mode = "reflect"', "fp16"),
        ("legacy", "", "fp32"),
        ("legacy", 'padding_mode = "replicate"', "fp16"),
    ],
)
def test_export(tmp_path, exporter, arguments, precision):
    exported = export(tmp_path, "Dynamic", IMAGE, exporter, arguments, precision)
    assert exported.operators.count("Scan") == (exporter == "dynamo")


class Wide(nn.Module):
    """Filters of the wrong dtype, or no tensor at all."""

    def __init__(self, right=1):
        super().__init__()
        self.right = right

    def forward(self, patches):
        return patches.double().repeat(1, 3) if self.right else (patches,)


def make(network=None, **arguments):
    return DynamicConv2d(2, 3, 2, network or filters(8, 3), **arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DynamicConv2d(0, 3, 2, filters(8, 3)), "in_channels must be an integer of at least 1, but is 0"),
        (lambda: DynamicConv2d(2, 1.5, 2, filters(8, 3)), "out_channels must be an integer .* but is 1.5"),
        (lambda: make(chunk_size=0), "chunk_size must be an integer of at least 1, but is 0"),
        (lambda: DynamicConv2d(2, 3, 2, torch.relu), "filter_network must be an nn.Module, but is a builtin"),
        (lambda: make(stride=0), "stride must be"),
        (lambda: make(padding="same", stride=2), 'padding "same" needs stride 1'),
        (lambda: make(padding_mode="mirror"), "padding_mode is 'mirror'"),
        (lambda: make()(torch.zeros(1, 3, 4, 4)), r"must be \[N, 2, H, W\], but is \[1, 3, 4, 4\]"),
        (lambda: make()(torch.zeros(1, 2, 1, 4)), "dimension 0 .* smaller than the kernel"),
        (
            lambda: make(nn.Linear(8, 23))(torch.zeros(1, 2, 3, 3)),
            r"must map patches \[4, 8\] to filters \[4, 3, 8\] or \[4, 24\], but returns \[4, 23\]",
        ),
        (lambda: make(Wide())(torch.zeros(1, 2, 3, 3)), "returns torch.float64 for patches of torch.float32; they must agree"),
        (lambda: make(Wide(0))(torch.zeros(1, 2, 3, 3)), "must map patches .* but returns tuple"),
        (
            lambda: make(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 24)))(torch.zeros(1, 2, 3, 3)),
            "filter_network.0 is a BatchNorm1d in training: .* chunk_size. Use LayerNorm, or eval",
        ),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=f"^DynamicConv2d: .*{message}"):
        build()


def test_batch_norm_is_welcome_in_evaluation():
    module = make(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 24))).eval()
    assert module(torch.zeros(1, 2, 3, 3)).shape == (1, 3, 2, 2)


def test_an_empty_batch_gives_an_empty_result():
    module, x = make(padding=1), torch.zeros(0, 2, 4, 4)
    assert module(x).shape == (0, 3, 5, 5)
    with torch.no_grad():
        assert module(x).shape == (0, 3, 5, 5)
