"""The module: the original's results, both semantics against the oracles, conversions, and clear refusals."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the modules need torch: pip install 'msconv-deploy[torch]'")
from safetensors.torch import load_file  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import MSConv2d, tile_and_concatenate  # noqa: E402
from tests.oracle import border_and_interior, conv_valid, difference, extents, scale_of, source_oracle, tile_concat_conv  # noqa: E402
from tests.strategies import cases  # noqa: E402
from tests.torch_modules import call, module_of, tensors  # noqa: E402

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGURATIONS = json.loads((FIXTURES / "original_msconv2d.json").read_text())


@pytest.fixture(scope="module")
def original():
    return load_file(FIXTURES / "original_msconv2d.safetensors")


def part(tensors, prefix):
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: str(c["index"]))
def test_original_state_dicts_load_unchanged_and_give_the_original_output(configuration, original):
    index = configuration["index"]
    module = MSConv2d(**configuration["arguments"], dtype=torch.float64)
    module.load_state_dict(part(original, f"{index}.state."))
    sources = part(original, f"{index}.in.")
    assert difference(call(module, sources).detach(), original[f"{index}.out"]) < 1e-12
    if f"{index}.tile" in original:
        assert torch.equal(tile_and_concatenate(**sources), original[f"{index}.tile"])


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(((torch.float64, 1e-12), (torch.float32, 1e-5))))
def test_module_equals_the_oracle_at_border_and_interior(case, precision):
    dtype, tolerance = precision
    if dtype == torch.float32:
        case = case.astype(np.float32).astype(np.float64)  # the oracle computes on the same rounded numbers
    oracle = tile_concat_conv if case.config.tiled else source_oracle
    expected = oracle(case.config, case.sources, case.weights, case.bias)
    actual = call(module_of(case, dtype), tensors(case, dtype)).detach().double().numpy()
    scale = np.abs(expected).max() if dtype == torch.float64 else scale_of(case, expected)
    border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
    for region in (border, ~border):
        assert np.abs(actual - expected)[region].max(initial=0) <= tolerance * scale


@st.composite
def convolutions(draw):
    """An nn.Conv2d over concatenated sources, and the sources."""
    channels = [draw(st.integers(0, 3)) for _ in range(4)]
    if not channels[0] and not (channels[1] and channels[2]):
        channels[0] = 1
    mode = draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular")))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    dilation = [draw(st.integers(1, 3)) for _ in range(2)]
    same = draw(st.sampled_from((False, False, True)))
    height, width = (draw(st.integers(1, 8)) for _ in range(2))
    limit = {"zeros": 9, "replicate": 9, "reflect": min(height, width) - 1, "circular": min(height, width)}[mode]
    padding = (
        "same" if same else [draw(st.integers(0, min(limit, d * k))) for k, d in zip(kernel, dilation, strict=True)]
    )
    for axis, reach in enumerate(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)):
        extra = (reach if mode != "zeros" else 0) if same else max(0, reach - 2 * padding[axis])
        height, width = (max(height, extra), width) if axis == 0 else (height, max(width, extra))
    stride = 1 if same else [draw(st.integers(1, 5)) for _ in range(2)]
    groups = draw(st.sampled_from((1, 1, 2)))
    if sum(channels) % groups:
        groups = 1
    torch.manual_seed(draw(st.integers(0, 2**31)))
    conv = torch.nn.Conv2d(
        sum(channels),
        2 * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        mode,
        dtype=torch.float64,
    )
    n = draw(st.integers(1, 3))
    shapes = {
        "nchw": (n, channels[0], height, width),
        "nch": (n, channels[1], height),
        "ncw": (n, channels[2], width),
        "nc": (n, channels[3]),
    }
    sources = {k: torch.randn(s, dtype=torch.float64) for k, s in shapes.items() if s[1]}
    return conv, channels, sources


@settings(max_examples=300, deadline=None)
@given(convolutions(), st.sampled_from(("tiled", "source")))
def test_from_conv2d_is_exact_or_refuses(drawn, semantics):
    conv, channels, sources = drawn
    expected = conv(tile_and_concatenate(**sources)).detach()
    try:
        module = MSConv2d.from_conv2d(conv, channels, semantics)
    except BadInputError as error:
        zero_padded = conv.padding_mode == "zeros" and (conv.padding == "same" or any(conv.padding))
        grouped = conv.groups > 1
        assert (grouped and "group" in str(error)) or (semantics == "source" and zero_padded and "border" in str(error))
        return
    assert difference(call(module, sources).detach(), expected) < 1e-12
    back = module.to_conv2d()
    assert difference(back(tile_and_concatenate(**sources)).detach(), expected) < 1e-12


@settings(max_examples=150, deadline=None)
@given(cases(semantics=0, modes=(0, 2), max_batch=2))
def test_to_conv2d_of_source_semantics_is_exact_or_refuses(case):
    pads = case.config.pads
    if pads[:2] != pads[2:] or not (case.sources.keys() & {"nchw"} or {"nch", "ncw"} <= case.sources.keys()):
        return
    module = module_of(case)
    module.padding = pads[:2]
    try:
        conv = module.to_conv2d()
    except BadInputError as error:
        assert "no tap inside the input" in str(error)
        axes = (case.config.rows, case.config.columns)
        assert any(a.pad_before % a.dilation or a.pad_before + a.pad_after > a.dilation * (a.kernel - 1) for a in axes)
        return
    sources = tensors(case)
    assert difference(conv(tile_and_concatenate(**sources)).detach(), call(module, sources).detach()) < 1e-12


@pytest.mark.parametrize("semantics", ["source", "tiled"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients(semantics, mode):
    torch.manual_seed(0)
    module = MSConv2d([2, 2, 2, 2], 4, 3, 2, 1, 1, 2, True, mode, dtype=torch.float64, padding_semantics=semantics)
    shapes = ((2, 2, 5, 4), (2, 2, 5), (2, 2, 4), (2, 2))
    sources = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(module, sources)
    module(*sources).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("semantics", ["source", "tiled"])
def test_torch_compile_without_graph_breaks_and_with_dynamic_sizes(semantics):
    torch.manual_seed(0)
    module = MSConv2d([3, 2, 2, 2], 4, 3, 1, 1, padding_semantics=semantics)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for n, h, w in ((1, 5, 7), (2, 1, 1), (3, 9, 4)):
        sources = (torch.randn(n, 3, h, w), torch.randn(n, 2, h), torch.randn(n, 2, w), torch.randn(n, 2))
        assert torch.allclose(compiled(*sources), module(*sources), atol=1e-6)


def test_autocast_half_and_deepcopy():
    module = MSConv2d([3, 2, 2, 2], 4, 3, 1, 1, padding_semantics="tiled")
    sources = (torch.randn(1, 3, 5, 6), torch.randn(1, 2, 5), torch.randn(1, 2, 6), torch.randn(1, 2))
    expected = module(*sources)
    half = copy.deepcopy(module).bfloat16()(*(s.bfloat16() for s in sources))
    assert half.dtype == torch.bfloat16
    assert difference(half.detach().float(), expected.detach()) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(module(*sources).detach().float(), expected.detach()) < 0.05
        narrow = module(*(s.bfloat16() for s in sources))  # which nn.Conv2d takes there, too
        assert difference(narrow.detach().float(), expected.detach()) < 0.05
    with pytest.raises(BadInputError, match="source nchw is torch.bfloat16, but the weights are torch.float32"):
        module(*(s.bfloat16() for s in sources))


@pytest.mark.parametrize(("made", "loaded"), [("source", "tiled"), ("tiled", "source")])
def test_a_state_dict_of_the_other_semantics_is_refused_with_the_way_to_convert(made, loaded):
    state = MSConv2d([3, 2, 0, 2], 4, 3, padding=1, padding_semantics=made).state_dict()
    target = torch.nn.Sequential(MSConv2d([3, 2, 0, 2], 4, 3, padding=1, padding_semantics=loaded))
    with pytest.raises(
        RuntimeError, match=rf'saved from an MSConv2d with padding_semantics="{made}".*with_padding_semantics'
    ):
        target.load_state_dict({f"0.{k}": v for k, v in state.items()})


def test_names_and_places_of_parameters():
    module = MSConv2d([0, 2, 3, 4], 5, (3, 7))
    assert set(module.state_dict()) == {"nch_block.weight", "nch_block.bias", "ncw_block.weight", "nc_block.weight"}
    assert module.nchw_block is None
    tiled = MSConv2d([1, 2, 3, 4], 5, (3, 7), padding_semantics="tiled")
    assert {k: tuple(v.shape) for k, v in tiled.state_dict().items()} == {
        "nchw_block.weight": (5, 1, 3, 7),
        "nchw_block.bias": (5,),
        "nch_block.weight": (5, 2, 3, 7),
        "ncw_block.weight": (5, 3, 3, 7),
        "nc_block.weight": (5, 4, 3, 7),
    }
    assert "padding_semantics='tiled'" in repr(tiled)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MSConv2d([3, 0, 0], 4, 3), "in_channels must be four counts"),
        (lambda: MSConv2d([0, 0, 0, 0], 4, 3), "at least one source"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3, padding="some"), 'known words are "same"'),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3, stride=2, padding="same"), "needs stride 1"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3, groups=2), "not divisible by groups 2"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3, padding_mode="mirror"), "padding_mode is 'mirror'"),
        (lambda: MSConv2d([0, 2, 0, 1], 4, 3, padding_semantics="tiled"), "defines the width"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3)(torch.zeros(1, 3, 5, 5)), "source nc .* is missing"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3)(torch.zeros(1, 3, 5, 5), nc=torch.zeros(1, 2)), "must have 1 channels"),
        (lambda: MSConv2d([3, 0, 0, 1], 4, 3)(torch.zeros(3, 5, 5), nc=torch.zeros(1, 1)), "must have 4 dimensions"),
        (lambda: MSConv2d([3, 1, 0, 0], 4, 3)(torch.zeros(1, 3, 5, 5), torch.zeros(1, 1, 4)), "height 4 but nchw has height 5"),
        (lambda: MSConv2d([3, 0, 0, 0], 4, 3)(torch.zeros(1, 3, 2, 5)), "smaller than the kernel"),
        (lambda: MSConv2d([3, 0, 0, 0], 4, 3)(torch.zeros(1, 3, 5, 5).half()), "is torch.float16, but the weights"),
        (lambda: MSConv2d.from_conv2d(torch.nn.Conv2d(5, 4, 3), [3, 0, 0, 1]), "sums to 4"),
        (lambda: MSConv2d.from_conv2d(torch.nn.Conv2d(4, 4, 3, groups=2), [3, 0, 0, 1]), "2 groups cut across"),
        (lambda: tile_and_concatenate(None, torch.zeros(1, 2, 3)), "height and width are defined by"),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=message):
        build()


def test_oracle_conv_equals_torch():
    """The oracle itself is checked against an implementation that is not ours."""
    x, w = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(6, 2, 3, 2, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, w, None, (2, 1), 0, (1, 2), 2)
    assert difference(conv_valid(x.numpy(), w.numpy(), (2, 1), (1, 2), 2), expected) < 1e-13
