"""Rows at all positions of the prompts, for SAEs that are still judged at the readout position.

Rows are numbered through: first the readout rows, one for each prompt, then the positions before them of the prompts
that train, by prompt, then by token. A held-out prompt is held out with all its positions; what is measured on held-out
rows, early stopping with it, is measured on readout rows, which are what circuits are found at.

Weights: the readout rows together have `READOUT_SHARE` of all draws, so that positions, ten times as many, do not drown
them. Of the rest every prompt has what its readout row has of the readout's share, divided among its positions: a long
prompt counts no more than a short one, and categories and behaviours stay as balanced as they are among readout rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.rows import RowSource, RowSplit, TensorRows

READOUT_SHARE = 0.5
"""Share of the draws, and so on average of each batch, that are readout rows."""
IN_MEMORY_BYTES = 2**29
"""Rows of a site up to this size, as float32, are kept in memory and shuffled all together; more are read batch by
batch and shuffled in blocks (`rows.RowStream`)."""


@dataclass(frozen=True)
class PromptRows:
    """The readout rows of a site, in memory, and after them the rows of other positions, which may lie on disk."""

    readout: TensorRows
    others: RowSource

    def __len__(self) -> int:
        return len(self.readout) + len(self.others)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return self.readout.d_model

    def take(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Return the rows asked for, in that order, as float32."""
        acts = torch.empty(len(rows), self.d_model)
        is_other = rows >= len(self.readout)
        acts[~is_other] = self.readout.take(rows[~is_other])
        acts[is_other] = self.others.take(rows[is_other] - len(self.readout))
        return acts


def split_positions(split: RowSplit, n_prompts: int, prompt: Int[Tensor, " row"], d_model: int) -> RowSplit:
    """Return a split of readout rows with the other positions of the training prompts added to what trains.

    Args:
        split: Of the readout rows, of which there is one for each prompt.
        n_prompts: How many prompts, held-out ones among them, there are.
        prompt: The prompt of each further row; none is held out.
        d_model: Width of a row; with the number of rows it decides how they are shuffled.

    Raises:
        InputError: There are no further rows.
    """
    if not len(prompt):
        raise InputError(
            "sae.positions: all: no prompt has a position of its own before the readout position (all prompts are the "
            "same up to there); set sae.positions: readout"
        )
    weight_of = torch.zeros(n_prompts, dtype=torch.float64)
    weight_of[split.train] = split.weights
    others = (weight_of / torch.bincount(prompt, minlength=n_prompts).clamp_min(1))[prompt]
    n_rows = len(split.train) + len(prompt)
    weights = torch.cat(
        [
            split.weights * (READOUT_SHARE * n_rows / split.weights.sum()),
            others * ((1 - READOUT_SHARE) * n_rows / others.sum()),
        ]
    )
    return replace(
        split,
        train=torch.cat([split.train, n_prompts + torch.arange(len(prompt))]),
        weights=weights,
        n_judged=len(split.train),
        is_streamed=n_rows * d_model * 4 > IN_MEMORY_BYTES,
    )
