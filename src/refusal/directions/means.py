"""Differences in means of a model's training prompts, pooled and per category, and the activations of every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from refusal.directions.activations import collect
from refusal.directions.candidates import MeanDiffs, PromptActs
from refusal.directions.material import Material
from refusal.directions.splits import Part


@dataclass(frozen=True)
class Means:
    """What one pass over the prompts gives."""

    pooled: MeanDiffs
    """All categories together."""
    by_category: Mapping[str, MeanDiffs]
    """Categories with enough training prompts of each side."""
    acts: PromptActs
    """Of every prompt of the contrast that is in a split, training prompts or not."""
    rows: tuple[int, ...]
    """Which prompts of the material they are."""
    is_refused: Bool[np.ndarray, " prompt"]
    """Their side."""
    parts: tuple[Part, ...]
    """Their split."""

    def places(self, part: Part) -> list[int]:
        """Return the rows of `acts` that are in a split."""
        return [place for place, of_place in enumerate(self.parts) if of_place is part]


def collect_means(material: Material) -> Means:
    """Run the prompts of the contrast once and return their differences in means and activations.

    Raises:
        InputError: More positions are asked for than a prompt has.
    """
    chosen = [
        (row, side, part)
        for row, (side, part) in enumerate(zip(material.sides, material.splits.parts, strict=True))
        if side is not None and part is not None
    ]
    categories = material.categories
    groups = [
        2 * categories.index(material.labels[row].category) + (not side) if part is Part.TRAIN else -1
        for row, side, part in chosen
    ]
    rows = tuple(row for row, _, _ in chosen)
    names = [material.labels[row].id for row in rows]
    found = collect(material.runs, material.tokens(rows), groups, material.positions, names)
    refused, complied = ([2 * index + side for index in range(len(categories))] for side in (0, 1))
    by_category = {
        category: found.sums.mean_diffs([refused[index]], [complied[index]], material.contrast, category)
        for index, category in enumerate(categories)
        if category in material.own_categories
    }
    pooled = found.sums.mean_diffs(refused, complied, material.contrast)
    is_refused = np.array([side for _, side, _ in chosen], dtype=bool)
    return Means(pooled, by_category, found.acts, rows, is_refused, tuple(part for _, _, part in chosen))
