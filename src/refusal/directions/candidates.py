"""Candidate directions: the difference in means between two sides of prompts, at every layer and several positions.

`mean_diffs[p, l] = mean over refused prompts of x[p, l] - mean over complied prompts of x[p, l]`, in float64. Positions
count from the end of the prompt in its chat frame: -1 is the readout position.

**Layers.** Here, as everywhere in this project, layer N is `residuals_N`: the residual stream *after* block N. The
published code reads the *input* of block N, which is the output of block N - 1 (of the embedding for N = 0). So its
`mean_diffs[p, l]` is our layer l - 1, and its layer 0 is `MeanDiffs.embedding`. Only `refusal.directions.formats`
converts; no other module counts layers in the published way.

This module knows sums and means, not models: `refusal.directions.activations` makes the sums.
Source: Arditi et al. arXiv 2406.11717, section 2.3; https://github.com/andyrdt/refusal_direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.labels import Behaviour
from refusal.prompts import DatasetLabel
from refusal.sites import Site, SiteKind


class Contrast(StrEnum):
    """Which two sides of prompts a difference in means is taken between; the first is the side of refusal."""

    BEHAVIOUR = "behaviour"
    """Refused against complied, whichever file the prompts came from."""
    DATASET_LABEL = "dataset_label"
    """Harmful against harmless: toxic prompts that were refused against safe ones that were complied with. The
    published contrast."""

    def side(self, dataset_label: DatasetLabel | str, behaviour: Behaviour | str) -> bool | None:
        """Return True for a prompt of the refused side, False for one of the complied side, None for neither."""
        is_refused = {Behaviour.REFUSED: True, Behaviour.COMPLIED: False}.get(Behaviour(behaviour))
        if is_refused is None or self is Contrast.BEHAVIOUR:
            return is_refused
        is_toxic = DatasetLabel(dataset_label) is DatasetLabel.TOXIC
        return is_refused if is_toxic is is_refused else None


@dataclass(frozen=True)
class Direction:
    """One direction in the residual stream."""

    raw: Float[Tensor, " d_model"]
    """The vector with its scale, e.g. the difference in means, float64 on the CPU."""
    position: int
    """Position it was read at, counted from the end of the prompt: -1 is the readout position."""
    layer: int
    """Block after which it was read; -1: the embeddings."""
    label: str
    """What it separates, e.g. `refused - complied` or `violence`."""

    @property
    def norm(self) -> float:
        """Length of the raw vector, in units of the residual stream."""
        return float(self.raw.norm())

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The vector at length 1; of a zero vector, zero."""
        return self.raw / max(self.norm, torch.finfo(torch.float64).tiny)

    @property
    def site(self) -> Site:
        """The site it was read at.

        Raises:
            ValueError: It was read at the embeddings, which are no site.
        """
        if self.layer < 0:
            raise ValueError("the embeddings are no site; ask for `layer` first")
        return Site(SiteKind.RESIDUALS, self.layer)

    @property
    def read_at(self) -> str:
        """Where it was read, in words: `residuals_3, position -1`."""
        return f"{'embeddings' if self.layer < 0 else self.site}, position {self.position}"


@dataclass(frozen=True)
class MeanDiffs:
    """Differences in means of one set of prompts."""

    values: Float[Tensor, "pos layer d_model"]
    """`values[p, N]`: at position `positions[p]`, after block N (`residuals_N`); float64 on the CPU."""
    embedding: Float[Tensor, "pos d_model"]
    """The same at the output of the embedding (the input of block 0): 0 where all prompts have the same token."""
    positions: tuple[int, ...]
    """Ascending and negative: (-3, -2, -1) are the last three tokens."""
    n_refused: int
    n_complied: int
    contrast: Contrast
    category: str | None = None
    """The category of the prompts; None: all categories together."""

    def __post_init__(self) -> None:
        if list(self.positions) != sorted(set(self.positions)) or any(position >= 0 for position in self.positions):
            raise ValueError(f"positions are {self.positions}; they are negative, ascending and differ")
        if not len(self.values) == len(self.embedding) == len(self.positions):
            raise ValueError(f"{len(self.values)} rows of values for {len(self.positions)} positions")

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.values.shape[1]

    @property
    def label(self) -> str:
        """What the differences separate."""
        sides = "refused - complied" if self.contrast is Contrast.BEHAVIOUR else "harmful - harmless"
        return sides if self.category is None else f"{sides}, {self.category}"

    def vector(self, position: int, layer: int) -> Float[Tensor, " d_model"]:
        """Return the difference at a position (negative) after a block; layer -1 is the embeddings."""
        row = self.positions.index(position)
        return self.embedding[row] if layer < 0 else self.values[row, layer]

    def direction(self, position: int, layer: int) -> Direction:
        """Return the direction at a position (negative) after a block."""
        return Direction(self.vector(position, layer), position, layer, self.label)


@dataclass(frozen=True)
class PromptActs:
    """Activations of single prompts, for what means cannot tell: probes, ceilings, projections."""

    values: Float[Tensor, "prompt pos layer d_model"]
    """`values[i, p, N]`: prompt i at position `positions[p]` after block N; float32 on the CPU."""
    positions: tuple[int, ...]
    """As in `MeanDiffs`; the readout position alone where all of them would take too much memory."""
    prompt_ids: tuple[str, ...]

    def at(self, position: int, layer: int) -> Float[Tensor, "prompt d_model"]:
        """Return the activations at a position (negative) after a block."""
        return self.values[:, self.positions.index(position), layer]

    def rows(self, prompts: Sequence[int] | Int[np.ndarray, " prompt"]) -> PromptActs:
        """Return some of the prompts, by row."""
        chosen = torch.as_tensor(np.asarray(prompts, dtype=np.int64))
        return PromptActs(self.values[chosen], self.positions, tuple(self.prompt_ids[row] for row in chosen.tolist()))


@dataclass(frozen=True)
class GroupSums:
    """Sums of activations over groups of prompts, from which any difference in means between groups follows."""

    sums: Float[Tensor, "group pos layer d_model"]
    """After each block, float64."""
    embedding: Float[Tensor, "group pos d_model"]
    """At the output of the embedding, float64."""
    counts: Int[Tensor, " group"]
    positions: tuple[int, ...]

    def mean_diffs(
        self, refused: Sequence[int], complied: Sequence[int], contrast: Contrast, category: str | None = None
    ) -> MeanDiffs:
        """Return the mean over all prompts of some groups less that over all prompts of others.

        Raises:
            ValueError: A side has no prompts.
        """
        sides = [torch.tensor(list(side), dtype=torch.long) for side in (refused, complied)]
        n_refused, n_complied = (int(self.counts[side].sum()) for side in sides)
        if not n_refused or not n_complied:
            raise ValueError(f"{n_refused} refused and {n_complied} complied prompts have no difference in means")
        values, embedding = (
            sums[sides[0]].sum(0) / n_refused - sums[sides[1]].sum(0) / n_complied
            for sums in (self.sums, self.embedding)
        )
        return MeanDiffs(values, embedding, self.positions, n_refused, n_complied, contrast, category)


def mean_diffs_of(
    acts: PromptActs, refused: Sequence[int], complied: Sequence[int], contrast: Contrast, category: str | None = None
) -> MeanDiffs:
    """Return the difference in means between rows of `acts`, in float64; the embedding is not known here and is 0.

    For halves and folds of prompts, whose means the sums over groups do not hold.

    Raises:
        ValueError: A side has no prompts.
    """
    if not len(refused) or not len(complied):
        raise ValueError(f"{len(refused)} refused and {len(complied)} complied prompts have no difference in means")
    means = [acts.rows(side).values.double().mean(0) for side in (refused, complied)]
    values = means[0] - means[1]
    embedding = torch.zeros(len(values), values.shape[-1], dtype=torch.float64)
    return MeanDiffs(values, embedding, acts.positions, len(refused), len(complied), contrast, category)
