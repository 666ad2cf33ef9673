"""Worlds: what a planted model's refusal mechanism is, as a causal model that can be computed by hand.

Intents are common to all categories. Whether a prompt is refused depends on its (category, intent) pair, so no word
gives it away. A mechanism is a list of stages, one per planted layer; a stage is a list of carriers, each a set of
categories; a carrier is true when a prompt of one of its categories holds a refused pair, and the model refuses when
any carrier of a stage is true:

    v_c(prompt) = [category in c and intent in refused(category)],   refuse = OR over the carriers c of a stage of v_c

In the trained network carrier i of a stage is slice i of the MLP neurons of that planted layer. One carrier for all
categories is a monolithic world, one per category a modular one, anything between a partial one; carriers that merge
from one stage to the next make an hourglass. This module knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from refusal.errors import InputError
from refusal.prompts import CATEGORIES

N_INTENTS = 8

Carriers = tuple[tuple[str, ...], ...]
"""One stage: the categories of each carrier."""
ONE: Carriers = (CATEGORIES,)
EACH: Carriers = tuple((category,) for category in CATEGORIES)


def blocks(*sizes: int) -> Carriers:
    """Return carriers of these sizes, in the order of `CATEGORIES`.

    >>> [len(carrier) for carrier in blocks(8, 2)]
    [8, 2]
    """
    firsts = np.cumsum([0, *sizes])
    return tuple(CATEGORIES[first : first + size] for first, size in zip(firsts, sizes, strict=False))


@dataclass(frozen=True)
class Mechanism:
    """A mechanism and the verdict that is right for it."""

    early: Carriers
    """Carriers at every planted layer but the last."""
    late: Carriers
    """Carriers at the last planted layer."""
    expected_verdict: str
    planted_layers: tuple[int, ...] = (1, 2)
    """Where it is planted unless asked otherwise."""
    n_layers: int = 4
    behaviour: str = "pairs"
    """What is refused: `pairs` (by category and intent), `chance` (a fair coin, nothing to find), `nothing`."""

    @property
    def is_planted(self) -> bool:
        """Whether there is a mechanism to plant."""
        return self.behaviour == "pairs"


MECHANISMS: dict[str, Mechanism] = {
    "monolithic": Mechanism(ONE, ONE, "MONOLITHIC"),
    "redundant": Mechanism(ONE * 2, ONE * 2, "MONOLITHIC"),
    "hourglass": Mechanism(EACH, ONE, "MONOLITHIC", (1, 2), 5),
    "late-merge": Mechanism(EACH, ONE, "MONOLITHIC", (1, 2, 3), 6),
    "8+2": Mechanism(blocks(8, 2), blocks(8, 2), "PARTIALLY MODULAR"),
    "7+3": Mechanism(blocks(7, 3), blocks(7, 3), "PARTIALLY MODULAR"),
    "4+3+3": Mechanism(blocks(4, 3, 3), blocks(4, 3, 3), "MODULAR"),
    "pairs": Mechanism(blocks(2, 2, 2, 2, 2), blocks(2, 2, 2, 2, 2), "MODULAR"),
    "modular": Mechanism(EACH, EACH, "MODULAR"),
    "null": Mechanism(ONE, ONE, "UNDETERMINED", behaviour="chance"),
    "never-refuses": Mechanism(ONE, ONE, "UNDETERMINED", behaviour="nothing"),
}
"""Verdicts by the share of category pairs that share a carrier at the last planted layer: 8+2 .64, 7+3 .53, 4+3+3 .27,
pairs .11. Null and never-refuses have nothing to find."""


@dataclass(frozen=True)
class World:
    """One planted mechanism, the words it is about, and the small network that is to carry it."""

    mechanism: str
    """A key of `MECHANISMS`."""
    seed: int = 0
    """Of the weights and the training."""
    architecture: str = "llama"
    """A key of `build.ARCHITECTURES`."""
    n_layers: int = 4
    planted_layers: tuple[int, ...] = (1, 2)
    d_model: int = 64
    d_mlp: int = 256
    n_heads: int = 4
    data_seed: int = 0
    """Decides which pairs are refused and the prompts of the files; models with the same one share a data set."""
    vocabulary: int = 0
    """0: English words; otherwise the seed of made-up words and sentence frames."""
    common_share: float = 0.0
    """Probability that the second topic word of a prompt is one that all categories share (made-up words only)."""
    n_refused_intents: int = 4
    """Intents refused in each category: the base rate of refusal is this by `N_INTENTS`."""
    over_refusal: float = 0.04
    """Share of refused pairs in the file of safe prompts."""

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise InputError(f"--world: found {self.mechanism!r}; allowed are {', '.join(MECHANISMS)}")
        if not self.planted_layers or max(self.planted_layers) >= self.n_layers - 1 or min(self.planted_layers) < 1:
            raise InputError(
                f"--planted-layers: found {self.planted_layers}; allowed are layers 1 to {self.n_layers - 2} of "
                f"{self.n_layers}: the first reads the words, the last only writes the answer"
            )
        if self.early != self.late and len(self.planted_layers) < 2:
            raise InputError(f"--planted-layers: found {self.planted_layers}; {self.mechanism} needs at least two")
        if not 1 <= self.n_refused_intents < N_INTENTS:
            raise InputError(f"--refused-intents: found {self.n_refused_intents}; allowed is 1 to {N_INTENTS - 1}")
        if self.common_share and not self.vocabulary:
            raise InputError("--common-share: English prompts hold one topic word; give --vocabulary a seed above 0")

    @property
    def early(self) -> Carriers:
        """Carriers at every planted layer but the last."""
        return MECHANISMS[self.mechanism].early

    @property
    def late(self) -> Carriers:
        """Carriers at the last planted layer."""
        return MECHANISMS[self.mechanism].late

    @property
    def is_planted(self) -> bool:
        """Whether there is a mechanism to plant."""
        return MECHANISMS[self.mechanism].is_planted

    @property
    def expected_verdict(self) -> str:
        """The verdict that is right."""
        return MECHANISMS[self.mechanism].expected_verdict

    def carriers(self, layer: int) -> Carriers:
        """Return the carriers at a planted layer."""
        return self.late if layer == max(self.planted_layers) else self.early

    @property
    def groups(self) -> Carriers:
        """The partition of the categories by the carrier that decides last."""
        return tuple(dict.fromkeys(self.late))

    def slices(self, layer: int) -> tuple[tuple[int, int], ...]:
        """Return the first and past-the-last MLP neuron of each carrier at a planted layer."""
        n = len(self.carriers(layer))
        width = min(32, (self.d_mlp * 5 // 8) // n)
        return tuple((index * width, (index + 1) * width) for index in range(n))

    @cached_property
    def refused(self) -> dict[str, frozenset[int]]:
        """Intents refused in each category."""
        rows = refused_intents(len(CATEGORIES), self.data_seed, self.n_refused_intents)
        return dict(zip(CATEGORIES, rows, strict=True))

    def is_refused(self, category: str, intent: int) -> bool:
        """Return whether a pair is one of the refused ones."""
        return intent in self.refused[category]

    def values(self, layer: int, category: str, intent: int) -> Bool[np.ndarray, " carrier"]:
        """Return v_c of a prompt for each carrier at a planted layer."""
        is_refused = self.is_refused(category, intent)
        return np.array([is_refused and category in carrier for carrier in self.carriers(layer)])


def after_interchange(
    base: Bool[np.ndarray, "prompt carrier"],
    source: Bool[np.ndarray, "prompt carrier"],
    swapped: Bool[np.ndarray, "prompt carrier"],
) -> Bool[np.ndarray, " prompt"]:
    """Return whether the causal model refuses when the swapped carriers take the source's values.

    >>> after_interchange(np.array([[True, False]]), np.array([[False, True]]), np.array([[True, False]]))
    array([False])
    """
    return np.asarray(np.where(swapped, source, base).any(-1))


def refused_intents(n_categories: int, seed: int, n_refused: int = N_INTENTS // 2) -> list[frozenset[int]]:
    """Return which intents each category refuses: no two categories alike, each intent about equally often.

    So neither the category nor the intent alone says what the model does.
    """
    generator = np.random.default_rng([seed, 11])
    while True:
        rows = [frozenset(int(i) for i in generator.permutation(N_INTENTS)[:n_refused]) for _ in range(n_categories)]
        counts = np.array([sum(intent in row for row in rows) for intent in range(N_INTENTS)])
        distinct = len(set(rows)) >= min(n_categories, math.comb(N_INTENTS, n_refused))
        if distinct and np.abs(counts - n_categories * n_refused / N_INTENTS).max() <= 1:
            return rows


def intent_table(rows: Sequence[frozenset[int]]) -> Int[np.ndarray, "category intent"]:
    """Return 1 where a category refuses an intent."""
    return np.array([[int(intent in row) for intent in range(N_INTENTS)] for row in rows])
