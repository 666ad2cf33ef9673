"""Worlds: what a planted model's refusal mechanism is, as a causal model that can be computed by hand.

Intents are common to all categories. Whether a prompt is refused depends on its (category, intent) pair, so no word
gives it away. The categories fall into groups; each group has one variable, true when a prompt of one of its categories
holds a refused pair, and the model refuses when any variable is true:

    v_g(prompt) = [category in group g and intent in refused(category)],   refuse = OR over g of v_g

In the trained network v_g is carried by slice g of the MLP neurons at each planted layer. One group is a monolithic
world, one per category a modular one, anything between a partial one. This module knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from refusal.errors import InputError
from refusal.prompts import CATEGORIES

N_INTENTS = 8
REFUSED_INTENTS = 4
"""Intents refused in each category: half of them."""
GROUPINGS: dict[str, tuple[int, ...]] = {
    "monolithic": (10,),
    "modular": (1,) * 10,
    "8+2": (8, 2),
    "7+3": (7, 3),
    "4+3+3": (4, 3, 3),
    "pairs": (2,) * 5,
}
"""Sizes of the groups, in the order of `CATEGORIES`."""


@dataclass(frozen=True)
class World:
    """One planted mechanism and the small Llama that is to carry it."""

    grouping: str
    """A key of `GROUPINGS`."""
    seed: int = 0
    n_layers: int = 4
    planted_layers: tuple[int, ...] = (1, 2)
    d_model: int = 64
    d_mlp: int = 256
    n_heads: int = 4
    data_seed: int = 0
    """Decides which pairs are refused; models with the same one share a data set."""

    def __post_init__(self) -> None:
        if self.grouping not in GROUPINGS:
            raise InputError(f"--world: found {self.grouping!r}; allowed are {', '.join(GROUPINGS)}")
        if not self.planted_layers or max(self.planted_layers) >= self.n_layers - 1 or min(self.planted_layers) < 1:
            raise InputError(
                f"--planted-layers: found {self.planted_layers}; allowed are layers 1 to {self.n_layers - 2} of "
                f"{self.n_layers}: the first reads the words, the last only writes the answer"
            )

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The partition of the categories."""
        found, first = [], 0
        for size in GROUPINGS[self.grouping]:
            found.append(CATEGORIES[first : first + size])
            first += size
        return tuple(found)

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Index of each category's group."""
        return {category: index for index, group in enumerate(self.groups) for category in group}

    @property
    def slice_width(self) -> int:
        """MLP neurons of one slice."""
        return min(32, (self.d_mlp * 5 // 8) // len(self.groups))

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """First and past-the-last neuron of each group's slice, the same at every planted layer."""
        width = self.slice_width
        return tuple((group * width, (group + 1) * width) for group in range(len(self.groups)))

    @cached_property
    def refused(self) -> dict[str, frozenset[int]]:
        """Intents refused in each category."""
        return dict(zip(CATEGORIES, refused_intents(len(CATEGORIES), self.data_seed), strict=True))

    def is_refused(self, category: str, intent: int) -> bool:
        """Return what the model is to do on a prompt."""
        return intent in self.refused[category]

    def variables(self, category: str, intent: int) -> Bool[np.ndarray, " group"]:
        """Return v_g of a prompt for each group."""
        values = np.zeros(len(self.groups), bool)
        values[self.group_of[category]] = self.is_refused(category, intent)
        return values


def after_interchange(
    base: Bool[np.ndarray, "prompt group"],
    source: Bool[np.ndarray, "prompt group"],
    swapped: Bool[np.ndarray, "prompt group"],
) -> Bool[np.ndarray, " prompt"]:
    """Return whether the causal model refuses when the swapped variables take the source's values.

    >>> after_interchange(np.array([[True, False]]), np.array([[False, True]]), np.array([[True, False]]))
    array([False])
    """
    return np.asarray(np.where(swapped, source, base).any(-1))


def refused_intents(n_categories: int, seed: int) -> list[frozenset[int]]:
    """Return which intents each category refuses: half of them, no two categories alike, each intent in about half.

    So neither the category nor the intent alone says what the model does.
    """
    generator = np.random.default_rng([seed, 11])
    while True:
        rows = [
            frozenset(int(i) for i in generator.permutation(N_INTENTS)[:REFUSED_INTENTS]) for _ in range(n_categories)
        ]
        counts = np.array([sum(intent in row for row in rows) for intent in range(N_INTENTS)])
        if len(set(rows)) == n_categories and np.abs(counts - n_categories / 2).max() <= 1:
            return rows


def intent_table(rows: Sequence[frozenset[int]]) -> Int[np.ndarray, "category intent"]:
    """Return 1 where a category refuses an intent."""
    return np.array([[int(intent in row) for intent in range(N_INTENTS)] for row in rows])
