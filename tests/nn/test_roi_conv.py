"""roi_conv2d against the full convolution in float64, cut afterwards: borders, gradients, cost, export, refusals."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the operators need torch: pip install 'msconv-deploy[torch]'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import roi_conv2d  # noqa: E402
from tests.nn.memory import peak_bytes  # noqa: E402
from tests.nn.operator_export import EXPORTERS, IMAGE, export, integers  # noqa: E402
from tests.nn.windows import windows  # noqa: E402
from tests.oracle import difference  # noqa: E402

CORNER = integers("[2]")
MASK = '{ shape = ["H", "W"], dtype = "bool" }'


@st.composite
def convolutions(draw):
    """(windows, groups, weight, bias, the full convolution's output)."""
    groups = draw(st.integers(1, 3))
    case = draw(windows(channels=(groups, 2 * groups)))
    weight = case.random(2 * groups, case.channels // groups, *case.kernel)
    bias = case.random(2 * groups) if draw(st.booleans()) else None
    full = F.conv2d(case.padded(case.image), weight, bias, case.stride, 0, case.dilation, groups)
    return case, groups, weight, bias, full


@st.composite
def boxes_in(draw, outputs):
    top, left = (draw(st.integers(0, n - 1)) for n in outputs)
    return top, left, draw(st.integers(top + 1, outputs[0])), draw(st.integers(left + 1, outputs[1]))


def cut(full, box):
    top, left, bottom, right = box
    return full[:, :, top:bottom, left:right]


def close(actual, expected, full):
    """A region can hold nothing but cancelled values: relative to the whole output."""
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item() <= 1e-12 * full.abs().max().item() if expected.numel() else True


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_equals_the_full_convolution_in_boxes(data):
    case, groups, weight, bias, full = data.draw(convolutions())
    boxes = data.draw(st.lists(boxes_in(case.outputs), min_size=1, max_size=3))
    arguments = {**case.arguments, "groups": groups}
    for box, given_box in zip(boxes, (boxes[0], torch.tensor(boxes[-1])), strict=False):
        expected = cut(full, box if given_box is boxes[0] else boxes[-1])
        assert close(roi_conv2d(case.image, weight, bias, **arguments, box=given_box), expected, full)
    for several in (boxes, torch.tensor(boxes)):
        found = roi_conv2d(case.image, weight, bias, **arguments, boxes=several)
        assert isinstance(found, list)
        assert all(close(y, cut(full, box), full) for y, box in zip(found, boxes, strict=True))
    whole = (0, 0, *case.outputs)
    assert close(roi_conv2d(case.image, weight, bias, **arguments, box=whole), full, full)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_full_convolution_in_equal_boxes(data):
    case, groups, weight, bias, full = data.draw(convolutions())
    size = tuple(data.draw(st.integers(1, n)) for n in case.outputs)
    corners = [[data.draw(st.integers(0, n - m)) for n, m in zip(case.outputs, size, strict=True)] for _ in range(3)]
    arguments = {**case.arguments, "groups": groups}
    found = roi_conv2d(case.image, weight, bias, **arguments, corners=torch.tensor(corners), size=size)
    expected = [cut(full, (top, left, top + size[0], left + size[1])) for top, left in corners]
    assert close(found, torch.stack(expected, 1), full)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_full_convolution_in_a_mask(data):
    case, groups, weight, bias, full = data.draw(convolutions())
    share = data.draw(st.sampled_from((0.0, 0.2, 0.7, 1.0)))
    mask = torch.rand(case.outputs, generator=torch.Generator().manual_seed(case.seed)) < share
    arguments = {**case.arguments, "groups": groups, "mask": mask}
    values = roi_conv2d(case.image, weight, bias, **arguments)
    assert values.shape[2] == mask.sum()
    assert close(values, full[:, :, mask], full)
    filled = roi_conv2d(case.image, weight, bias, **arguments, fill=-2.5)
    assert close(filled, torch.where(mask, full, -2.5), full)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    "region",
    [
        {"box": (0, 1, 2, 3)},
        {"corners": torch.tensor([[0, 0], [1, 2], [1, 1]]), "size": (2, 1)},
        {"mask": torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1]]).bool()},
        {"mask": torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1]]).bool(), "fill": 0.0},
    ],
    ids=["box", "corners", "mask", "filled"],
)
def test_gradients(region, mode):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return roi_conv2d(x, weight, bias, 2, (1, 1, 1, 1), 1, 2, **region, padding_mode=mode)

    assert torch.autograd.gradcheck(call, (x, weight, bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_keeps_its_dtype_and_ignores_what_it_does_not_read(dtype, tolerance):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((1, 4, 9, 9), (3, 4, 3, 3), (3,)))
    x[..., 6:, :] = float("nan")
    full = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[:4, 2:5] = True
    for region in ({"box": (0, 2, 4, 5)}, {"corners": torch.tensor([[0, 2]]), "size": (4, 3)}, {"mask": mask}):
        actual = roi_conv2d(x, weight, bias, padding=1, **region)
        assert actual.dtype == dtype
        assert difference(actual.double().reshape(1, 3, 4, 3), full[:, :, :4, 2:5]) < tolerance


@pytest.mark.parametrize("region", ["box", "corners", "mask"])
def test_cost_is_that_of_the_region(region):
    """Multiply-accumulates are those of the region's outputs, and memory does not grow with the image."""
    x, weight = torch.randn(1, 4, 256, 256), torch.randn(8, 4, 3, 3)
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[100:116, 8:24] = True
    argument = {"box": (100, 8, 116, 24), "mask": mask, "corners": torch.tensor([[100, 8]])}[region]
    extra = {"size": (16, 16)} if region == "corners" else {}

    def call():
        return roi_conv2d(x, weight, None, 1, 1, **{region: argument}, **extra)

    with FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() == 2 * 16 * 16 * 8 * 4 * 9
    # Values and positions of the region; nonzero reads the mask.
    assert peak_bytes(call) < x.nbytes / 8


NETWORKS = {
    "InBox": ({**IMAGE, "corner": CORNER, "extent": CORNER}, "stride = 2", "fp32", EXPORTERS),
    "InBoxes": ({**IMAGE, "corner": CORNER}, "", "fp16", ["dynamo"]),
    "InEqualBoxes": ({**IMAGE, "corners": integers('["B", 2]')}, 'padding_mode = "reflect"', "fp32", EXPORTERS),
    "InMask": ({**IMAGE, "mask": MASK}, 'padding_mode = "replicate"', "fp32", ["legacy"]),
    "InMaskFilled": ({**IMAGE, "mask": MASK}, 'padding_mode = "circular"', "fp16", EXPORTERS),
}


@pytest.mark.parametrize(
    ("network", "exporter"), [(name, exporter) for name, row in NETWORKS.items() for exporter in row[-1]]
)
def test_export(tmp_path, network, exporter):
    inputs, arguments, precision, _ = NETWORKS[network]
    exported = export(tmp_path, network, inputs, exporter, arguments, precision)
    if network == "InBox":  # boxes of other extents and places, that touch the border too
        names = [tmp_path / f"box{i}.npz" for i in range(3)]
        x = torch.randn(2, 3, 23, 17).numpy()
        for name, (corner, extent) in zip(names, [((0, 0), (10, 7)), ((3, 4), (0, 3)), ((9, 5), (1, 1))], strict=True):
            np.savez(name, x=x, corner=np.array(corner), extent=np.array(extent))
        assert exported.validate(files=names) == 3


def ask(x=None, weight=None, bias=None, **arguments):
    x = torch.zeros(1, 2, 5, 6) if x is None else x
    return roi_conv2d(x, torch.zeros(4, 2, 3, 3) if weight is None else weight, bias, **arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ask(), "exactly one of box, boxes, corners, mask, but given are: none"),
        (lambda: ask(box=(0, 0, 1, 1), mask=torch.ones(3, 4).bool()), "but given are: box, mask"),
        (lambda: ask(corners=torch.zeros(1, 2).long()), "corners and size go together"),
        (lambda: ask(box=(0, 0, 1, 1), size=(1, 1)), "corners and size go together"),
        (lambda: ask(box=(0, 0, 1, 1), fill=0.0), "fill goes with mask"),
        (lambda: ask(box=(0, 0, 1)), r"box must be integers \[4\] \(top, left, bottom, right\), but is \(0, 0, 1\)"),
        (lambda: ask(box=(0, 0, 1.5, 1)), "box must be integers"),
        (lambda: ask(box=torch.zeros(4)), r"box must be integers .* but is torch.float32 \[4\]"),
        (lambda: ask(box=(0, 0, 4, 1)), "box is .* must hold at least one position and lie within the output of 3 x 4"),
        (lambda: ask(box=(-1, 0, 1, 1)), "lie within the output of 3 x 4"),
        (lambda: ask(box=torch.tensor([0, 2, 1, 2])), r"box is \[0, 2, 1, 2\] .* at least one position"),
        (lambda: ask(boxes=[(0, 0, 1, 1), (0, 0, 1, 5)]), r"boxes\[1\] is"),
        (lambda: ask(corners=torch.zeros(1, 3).long(), size=(1, 1)), r"corners must be integers \[B, 2\]"),
        (lambda: ask(corners=torch.tensor([[0, 0], [2, 3]]), size=(2, 1)), r"corners\[1\] is \[2, 3\], but a box of 2 x 1"),
        (lambda: ask(corners=torch.zeros(1, 2).long(), size=(0, 1)), "size must be two integers of at least 1"),
        (lambda: ask(mask=torch.ones(3, 4)), "mask must be a bool tensor .* but is torch.float32"),
        (lambda: ask(mask=torch.ones(1, 3, 4).bool()), "for all samples"),
        (lambda: ask(mask=torch.ones(5, 6).bool()), r"mask is \[5, 6\], but the output, .* is \[3, 4\]"),
        (lambda: ask(weight=torch.zeros(4, 2, 3), box=(0, 0, 1, 1)), "weight must be"),
        (lambda: ask(groups=3, box=(0, 0, 1, 1)), "groups is 3, which does not divide 4"),
        (lambda: ask(groups=2, box=(0, 0, 1, 1)), r"must be \[N, 4, H, W\], but is \[1, 2, 5, 6\]"),
        (lambda: ask(stride=0, box=(0, 0, 1, 1)), "stride must be"),
        (lambda: ask(padding="all", box=(0, 0, 1, 1)), 'padding is \'all\'; known words are "same"'),
        (lambda: ask(padding_mode="mirror", box=(0, 0, 1, 1)), "padding_mode is"),
        (lambda: ask(torch.zeros(1, 2, 2, 6), box=(0, 0, 1, 1)), "dimension 0 .* smaller than the kernel"),
        (lambda: ask(torch.zeros(1, 2, 5, 6).half(), box=(0, 0, 1, 1)), "torch.float16, but the weights are torch.float32"),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=f"^roi_conv2d: .*{message}"):
        build()
