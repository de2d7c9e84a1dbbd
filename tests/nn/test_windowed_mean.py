"""windowed_mean against a loop over positions in float64: ends, precision, gradients, export, refusals."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the operators need torch: pip install 'msconv-deploy[torch]'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import windowed_mean  # noqa: E402
from tests.nn.operator_export import export, integers  # noqa: E402
from tests.oracle import difference  # noqa: E402


def formula(x, index, window, dim, ends):
    """One position at a time."""
    x = np.moveaxis(x, dim, 0)
    index = np.broadcast_to(index, x.shape[1:])
    y = np.empty(x.shape[1:])
    last = len(x) - 1
    for place in itertools.product(*map(range, y.shape)):
        center = min(max(int(index[place]), 0), last)
        slices = range(center - (window - 1) // 2, center + window // 2 + 1)
        assert len(slices) == window
        kept = [d for d in slices if 0 <= d <= last] if ends == "cut" else [min(max(d, 0), last) for d in slices]
        y[place] = np.mean([x[(d, *place)] for d in kept])
    return y


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_the_formula(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    window, ends = data.draw(st.integers(1, 14)), data.draw(st.sampled_from(("cut", "repeat")))
    kept = [n for i, n in enumerate(shape) if i != dim % len(shape)]
    kept = [data.draw(st.sampled_from((1, n))) for n in kept]
    generator = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    x, index = generator.standard_normal(shape), generator.integers(-2, shape[dim] + 2, kept)
    actual = windowed_mean(torch.from_numpy(x), torch.from_numpy(index), window, dim, ends)
    assert difference(actual, formula(x, index, window, dim, ends)) < 1e-13


@pytest.mark.parametrize("ends", ["cut", "repeat"])
@pytest.mark.parametrize("window", [1, 2, 5, 12])
def test_gradients(window, ends):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (2, 2, 3))
    assert torch.autograd.gradcheck(lambda x: windowed_mean(x, index, window, 1, ends), (x,))


def test_a_window_beyond_the_volume_is_the_mean_of_all_slices():
    x, index = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    assert torch.allclose(windowed_mean(x, index, 11), x.mean(1), atol=1e-6)


@pytest.mark.parametrize("ends", ["cut", "repeat"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_lies_outside_of_the_window_does_not_count(ends, value):
    x = torch.ones(1, 7, 2, 2)
    x[:, 0] = x[:, -1] = value
    index = torch.full((1, 2, 2), 3)
    assert torch.equal(windowed_mean(x, index, 3, ends=ends), torch.ones(1, 2, 2))


def test_small_values_behind_large_ones_keep_their_precision():
    """Differences of cumulative sums in float32 lose them."""
    torch.manual_seed(0)
    x = torch.randn(1, 500, 4, 4)
    x[:, :100] += 1e6
    index = torch.randint(200, 490, (1, 4, 4))
    expected = formula(x.double().numpy(), index.numpy(), 5, 1, "cut")
    assert difference(windowed_mean(x, index, 5), expected) < 1e-6
    sums = torch.nn.functional.pad(x.cumsum(1), (0, 0, 0, 0, 1, 0))
    naive = (sums.gather(1, index[:, None] + 3) - sums.gather(1, index[:, None] - 2)).squeeze(1) / 5
    assert difference(naive, expected) > 1e-3


@pytest.mark.parametrize("ends", ["cut", "repeat"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_narrow_types_are_summed_in_float32(dtype, tolerance, ends):
    x = (
        (torch.rand(1, 4000, 2, 2) + 6e4).to(dtype)
        if dtype == torch.bfloat16
        else torch.full((1, 4000, 2, 2), 6e4).to(dtype)
    )
    y = windowed_mean(x, torch.full((1, 2, 2), 10), 3001, 1, ends)
    assert y.dtype == dtype
    assert difference(y.double(), torch.full((1, 2, 2), 6e4)) < tolerance


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_narrow_indices_do_not_wrap_around(dtype):
    x = torch.randn(1, 300, 1, 1)
    index = torch.tensor([[[255 if dtype == torch.uint8 else 299]]])
    expected = windowed_mean(x, index, 99)
    assert torch.equal(windowed_mean(x, index.to(dtype), 99), expected)


@pytest.mark.parametrize(
    ("exporter", "arguments", "precision"),
    [
        ("dynamo", "window = 3", "fp32"),
        ("dynamo", 'window = 4\nends = "repeat"', "fp16"),
        ("legacy", "window = 12", "fp16"),
        ("legacy", 'window = 5\nends = "repeat"', "fp32"),
    ],
)
def test_export(tmp_path, exporter, arguments, precision):
    inputs = {"x": '["N", "D", "H", "W"]', "index": integers('["N", "H", "W"]')}
    exported = export(tmp_path, "Slices", inputs, exporter, arguments, precision)
    assert not {"Loop", "Scan"} & set(exported.operators)
    sizes = [{"N": 1, "D": 7, "H": 4, "W": 3}, {"N": 2, "D": 2, "H": 1, "W": 5}, {"N": 1, "D": 1, "H": 3, "W": 3}]
    assert exported.validate(sizes=sizes, ranges={"index": (-2, 8)}) == 3


X, INDEX = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: windowed_mean(X, INDEX, 0), "window must be an integer of at least 1, but is 0"),
        (lambda: windowed_mean(X, INDEX, 2.5), "window must be .* but is 2.5"),
        (lambda: windowed_mean(X, INDEX, 3, 4), r"dim 4 is not a dimension of x \[2, 5, 3, 4\]"),
        (lambda: windowed_mean(X, INDEX, 3, ends="reflect"), 'ends is \'reflect\'; known are "cut" and "repeat"'),
        (lambda: windowed_mean(X, INDEX.float(), 3), "index must be integers, but is torch.float32: round it"),
        (lambda: windowed_mean(X, INDEX.bool(), 3), "index must be integers, but is torch.bool"),
        (lambda: windowed_mean(X.long(), INDEX, 3), "x must be floating, but is torch.int64"),
        (lambda: windowed_mean(X, INDEX[0], 3), r"index must be \[2, 3, 4\], .* but is \[3, 4\]"),
        (lambda: windowed_mean(X, INDEX, 3, 2), r"index must be \[2, 5, 4\], .* but is \[2, 3, 4\]"),
        (lambda: windowed_mean(X[:, :0], INDEX, 3), r"x \[2, 0, 3, 4\] has no slice along dim 1"),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=f"^windowed_mean: .*{message}"):
        build()
