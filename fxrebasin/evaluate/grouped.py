"""Matrix products group by group, which PyTorch has for up to 32 bits only."""
from __future__ import annotations

import torch
from torch import Tensor


def grouped_product(a: Tensor, b: Tensor, ends: Tensor | None = None, bias: Tensor | None = None,
                    out_dtype: torch.dtype | None = None) -> Tensor:
    """`aten._grouped_mm`: a (rows, k) or (groups, rows, k), b (k, columns) or (groups, k, columns).

    ends  where each group ends, along the one dimension that a two-dimensional argument has cut in groups:
          the rows of a, the columns of b, or k if both are two-dimensional. Rows and columns beyond the last
          end are zero.
    """
    if a.ndim == b.ndim == 3:
        product = a @ b
        return product if bias is None else product + bias[:, None]
    assert ends is not None
    bounds = [0, *ends.tolist()]
    pieces = list(zip(bounds, bounds[1:]))
    if a.ndim == b.ndim == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in pieces])
    if a.ndim == 2:
        result = a.new_zeros(len(a), b.shape[-1])
        for g, (start, end) in enumerate(pieces):
            result[start:end] = a[start:end] @ b[g] + (0 if bias is None else bias[g])
        return result
    result = a.new_zeros(a.shape[1], b.shape[-1])
    for g, (start, end) in enumerate(pieces):
        result[:, start:end] = a[g] @ b[:, start:end]
    return result
