"""The convolution as a linear operator: a dense or a sparse matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.geometry import Mode, Numbers, Padding, checked_mode, window_axes
from msconv_deploy.ops.conv_matrix import conv_entries


def conv_matrix(
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    sparse: bool = False,
    padding_mode: Mode = "zeros",
) -> Tensor:
    """The matrix A with ``F.conv2d(x, weight, ...)[n].flatten() == A @ x[n].flatten()``, bias aside.

    Args:
        weight: ``[O, C/groups, *kernel]``, with any number of spatial dimensions: as for `F.conv1d`, `F.conv2d`, `F.conv3d`.
        input_shape: ``[C, *extents]`` of one sample.
        stride, padding, dilation, groups: as in those, ``padding`` also as all befores and then all afters.
        sparse: return a coalesced COO tensor (``.to_sparse_csr()`` makes it CSR) of O*H'*W' * C/groups*kh*kw entries at most,
            instead of a dense one of O*H'*W' * C*H*W.
        padding_mode: as in `nn.Conv2d`.

    Returns:
        ``[O*H'*W', C*H*W]`` in the weight's dtype and on its device, differentiable with respect to the weight. Its
        transpose is the transposed convolution.

    Raises:
        BadInputError: an argument is wrong, or the shapes do not fit.
    """
    if not isinstance(weight, Tensor) or weight.ndim < 3 or not weight.is_floating_point():
        found = f"{weight.dtype} {list(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise BadInputError(f"conv_matrix: weight must be a floating tensor [O, C/groups, *kernel], but is {found}")
    shape = [int(n) for n in weight.shape]  # constants also where a tracer would make tensors of them
    axes = window_axes("conv_matrix", shape[2:], stride, padding, dilation)
    mode = checked_mode("conv_matrix", padding_mode)
    entries = conv_entries(shape, input_shape, axes, groups, mode)
    rows, columns, places = (
        torch.from_numpy(array).to(weight.device) for array in (entries.rows, entries.columns, entries.weights)
    )
    values = weight.flatten()[places]
    if sparse:
        indices = torch.stack((rows, columns))
        return torch.sparse_coo_tensor(indices, values, entries.shape, check_invariants=False).coalesce()
    height, width = entries.shape
    return weight.new_zeros(height * width).index_add(0, rows * width + columns, values).reshape(entries.shape)
