"""conv_matrix against PyTorch's convolutions in float64: 1 to 3 dimensions, every padding, dense and sparse."""

import pytest

torch = pytest.importorskip("torch", reason="the operators need torch: pip install 'msconv-deploy[torch]'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import conv_matrix  # noqa: E402
from tests.nn.operator_export import export  # noqa: E402
from tests.nn.windows import windows  # noqa: E402
from tests.oracle import difference  # noqa: E402


@settings(max_examples=200, deadline=None)
@given(windows(channels=(2, 4)), st.sampled_from((1, 2)))
def test_times_the_image_is_the_convolution(case, groups):
    weight = case.random(2 * groups, case.channels // groups, *case.kernel)
    matrix = conv_matrix(weight, case.image.shape[1:], **case.arguments, groups=groups)
    expected = F.conv2d(case.padded(case.image), weight, None, case.stride, 0, case.dilation, groups)
    assert matrix.shape == (expected[0].numel(), case.image[0].numel())
    assert difference((case.image.flatten(1) @ matrix.t()).reshape(expected.shape), expected) < 1e-12
    sparse = conv_matrix(weight, case.image.shape[1:], **case.arguments, groups=groups, sparse=True)
    assert sparse.layout == torch.sparse_coo
    assert sparse.is_coalesced()
    assert difference(sparse.to_dense(), matrix) < 1e-14
    if case.mode == "zeros":
        assert sparse._nnz() <= matrix.shape[0] * weight[0].numel()


@pytest.mark.parametrize(("rank", "conv"), [(1, F.conv1d), (2, F.conv2d), (3, F.conv3d)])
def test_any_number_of_dimensions_and_the_transposed_convolution(rank, conv):
    torch.manual_seed(0)
    shape, kernel = (4, *(5, 6, 4)[:rank]), (3, 2, 2)[:rank]
    weight = torch.randn(6, 2, *kernel, dtype=torch.float64)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    expected = conv(x, weight, None, 2, 1, 1, 2)
    matrix = conv_matrix(weight, shape, 2, 1, 1, 2)
    assert difference((x.flatten(1) @ matrix.t()).detach(), expected.flatten(1).detach()) < 1e-13
    y = torch.randn_like(expected)
    (backward,) = torch.autograd.grad(expected, x, y)
    assert difference(y.flatten(1) @ matrix, backward.flatten(1)) < 1e-13


def test_same_and_asymmetric_padding():
    weight, x = torch.randn(2, 1, 2, 4, dtype=torch.float64), torch.randn(1, 1, 5, 6, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding="same").flatten()
    for padding in ("same", (0, 1, 1, 2)):
        assert difference(conv_matrix(weight, (1, 5, 6), 1, padding) @ x.flatten(), expected) < 1e-14


def test_is_block_toeplitz():
    """Unpadded and of stride 1, every diagonal of a channel's block is one number."""
    matrix = conv_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), (1, 6))
    assert matrix.tolist() == [[0.0] * i + [1.0, 2.0, 3.0] + [0.0] * (3 - i) for i in range(4)]


def test_two_in_a_row_are_the_product_of_their_matrices():
    torch.manual_seed(0)
    first, second = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    product = conv_matrix(second, (3, 3, 4), 1, 1) @ conv_matrix(first, (2, 6, 7), 2, 1)
    expected = F.conv2d(F.conv2d(x, first, None, 2, 1), second, None, 1, 1)
    assert difference(product @ x.flatten(), expected.flatten()) < 1e-13


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients(mode):
    weight = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def call(weight, sparse=False):
        return conv_matrix(weight, (2, 3, 4), (1, 2), (1, 0, 0, 2), 1, 2, sparse, mode)

    assert torch.autograd.gradcheck(call, (weight,))
    (dense,) = torch.autograd.grad(call(weight).square().sum(), weight)
    (sparse,) = torch.autograd.grad(call(weight, sparse=True).to_dense().square().sum(), weight)
    assert difference(sparse, dense) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_its_dtype_and_values(dtype):
    weight = torch.randn(2, 1, 3, 3).to(dtype)
    wide = conv_matrix(weight.double(), (1, 5, 5), 1, 1)
    for sparse in (False, True):
        matrix = conv_matrix(weight, (1, 5, 5), 1, 1, sparse=sparse)
        assert matrix.dtype == dtype
        assert torch.equal((matrix.to_dense() if sparse else matrix).double(), wide)


def test_a_large_one_stays_sparse():
    weight, x = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(3, 128, 128, dtype=torch.float64)
    matrix = conv_matrix(weight, x.shape, 1, 1, sparse=True)
    assert matrix.shape == (4 * 128**2, 3 * 128**2)
    assert matrix._nnz() == 4 * 3 * (3 * 128 - 2) ** 2
    assert difference(torch.mv(matrix, x.flatten()), F.conv2d(x[None], weight, None, 1, 1).flatten()) < 1e-13


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_export(tmp_path, exporter):
    export(tmp_path, "Linear", {"x": '["N", 3, 9, 8]'}, exporter)


W = torch.zeros(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: conv_matrix(torch.zeros(4, 2), (2,)), r"weight must be a floating tensor .* but is torch.float32 \[4, 2\]"),
        (lambda: conv_matrix(W.long(), (2, 5, 5)), "weight must be a floating tensor .* but is torch.int64"),
        (lambda: conv_matrix(W.numpy(), (2, 5, 5)), "weight must be a floating tensor .* but is ndarray"),
        (lambda: conv_matrix(W, (1, 2, 5, 5)), "2 spatial dimensions, input_shape .* has 3: .* without a batch"),
        (lambda: conv_matrix(W, (3, 5, 5)), "needs an input of 2 channels .* but input_shape is"),
        (lambda: conv_matrix(W, (6, 5, 5), groups=3), "with groups 3 needs .* outputs in multiples of 3"),
        (lambda: conv_matrix(W, (2, 5, 5), groups=0), "with groups 0"),
        (lambda: conv_matrix(W, (2, 5, 2)), "dimension 1 .* smaller than the kernel"),
        (lambda: conv_matrix(W, (2, 0, 5), padding=2), "dimension 0 .* extent 0; it must be at least 1"),
        (lambda: conv_matrix(W, (2, 5, 5), padding=(1, 2, 3)), "padding must be .* or 4"),
        (lambda: conv_matrix(W, (2, 5, 5), stride=(1, 0)), "stride must be"),
        (lambda: conv_matrix(W, (2, 5, 5), padding=5, padding_mode="reflect"), "padding_mode reflect with padding 5"),
    ],
)  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(BadInputError, match=f"^conv_matrix: .*{message}"):
        build()
