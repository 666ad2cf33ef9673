"""The k largest of many numbers, as an SAE needs them: where they are, or how large the smallest of them is.

Numbers that are not positive are set to 0 by every SAE, so it does not matter how they rank among themselves. Ranks of
floats are then ranks of the integers that have the same bits, and numpy partitions integers in vector instructions,
several times as fast as `torch.topk` on a CPU. On other devices and in other precisions torch does it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

PART_VALUES = 2**17
"""Values ranked at once: what a core keeps in its cache."""


def top_k(pre: Float[Tensor, "*row n"], k: int) -> Int[Tensor, "*row k"]:
    """Return where the k largest of each row are, in no particular order.

    Where fewer than k are positive, it is undefined which of the others fill up.

    >>> top_k(torch.tensor([[0.5, -1.0, 2.0, 1.0]]), 2).sort().values.tolist()
    [[2, 3]]
    """
    n = pre.shape[-1]
    choose = _choosers(n).get(pre.dtype) if pre.device.type == "cpu" and k < n else None
    if choose is None:
        return torch.topk(pre, k, dim=-1, sorted=False).indices
    rows = pre.detach().contiguous().view(-1, n)
    parts = [choose(part, k) for part in rows.split(max(1, PART_VALUES // n))]
    return torch.cat(parts or [rows.new_empty(0, k, dtype=torch.long)]).view(*pre.shape[:-1], k)


def _choosers(n: int) -> dict[torch.dtype, Callable[[Tensor, int], Tensor]]:
    """Return by dtype what chooses among n values."""
    with_columns = {torch.bfloat16: _ranked_with_columns} if n <= 2**16 else {}
    return {torch.float32: _above_the_kth, **with_columns}


def _above_the_kth(rows: Float[Tensor, "row n"], k: int) -> Int[Tensor, "row k"]:
    """Return where the k largest are, of float32."""
    bits = rows.view(torch.int32).numpy()
    chosen = np.flatnonzero(bits >= _kth_largest(bits, k))
    if chosen.size != len(bits) * k:  # there are ties at the k-th
        return torch.topk(rows, k, dim=-1, sorted=False).indices
    return torch.from_numpy(chosen.reshape(-1, k) - np.arange(len(bits))[:, None] * bits.shape[1])


def kth_largest(pre: Float[Tensor, "row n"], k: int) -> Float[Tensor, " row"]:
    """Return the k-th largest of each row, if it is positive; else 0.

    >>> kth_largest(torch.tensor([[0.5, -1.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]]), 2).tolist()
    [1.0, 0.0]
    """
    if pre.device.type == "cpu" and pre.dtype == torch.float32:
        bits = pre.detach().contiguous().view(torch.int32).numpy()
        return torch.from_numpy(_kth_largest(bits, k)[:, 0].copy()).view(torch.float32).clamp_min(0)
    return pre.detach().topk(k, dim=-1).values[:, -1].clamp_min(0)


def _kth_largest(bits: NDArray[np.int32], k: int) -> NDArray[np.int32]:
    """Return the k-th largest of each row, as a column."""
    ranked = bits.copy()
    ranked.partition(-k, axis=-1)
    return ranked[:, -k, None]


def _ranked_with_columns(rows: Float[Tensor, "row n"], k: int) -> Int[Tensor, "row k"]:
    """Return where the k largest are, of bfloat16: value and column share an integer, so that nothing ties."""
    keys = rows.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    keys |= torch.arange(rows.shape[1], dtype=torch.int32)
    ranked = keys.numpy()
    ranked.partition(-k, axis=-1)
    return torch.from_numpy(ranked[:, -k:] & 0xFFFF).long()
