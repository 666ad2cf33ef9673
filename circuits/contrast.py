"""Which prompts are compared: refused and complied ones of the same category, equally many in every category.

Sides are what the model did, never which file a prompt came from. Answers that are neither (partly refused, cannot
tell) are left out. The refused and the complied prompts of a category are each split into two folds: circuits are found
on one and effects measured on the other. This module knows labels only, no activations.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from refusal.schemas import PromptLabel, RefusalLabels

MIN_PROMPTS = 6
"""Refused, and complied, prompts a category needs: three in each fold, below which an interval means nothing."""
N_FOLDS = 2


@dataclass(frozen=True)
class CategoryCounts:
    """How many prompts of a category were refused and complied with, and why it is left out (None: it is used)."""

    n_refused: int
    n_complied: int
    reason_left_out: str | None


@dataclass(frozen=True)
class Contrasts:
    """The prompts of a comparison, one row each, ordered by category, then refused before complied, then by id."""

    prompt_ids: tuple[str, ...]
    categories: tuple[str, ...]
    """Categories in use, in the order asked for."""
    category: Int[np.ndarray, " prompt"]
    """Index into `categories`."""
    is_refused: Bool[np.ndarray, " prompt"]
    fold: Int[np.ndarray, " prompt"]
    """0 or 1; balanced within each category and side."""
    counts: dict[str, CategoryCounts]
    """For every category that was asked for, also those left out."""

    @property
    def refused(self) -> Int[np.ndarray, " prompt"]:
        """Rows of the refused prompts."""
        return np.flatnonzero(self.is_refused)

    def rows(self, category: int, *, refused: bool, fold: int | None = None) -> Int[np.ndarray, " prompt"]:
        """Return the rows of one category and side, of one fold or of both."""
        chosen = (self.category == category) & (self.is_refused == refused)
        return np.flatnonzero(chosen if fold is None else chosen & (self.fold == fold))


def build_contrasts(labels: RefusalLabels, categories: tuple[str, ...], seed: int) -> Contrasts:
    """Return the prompts to compare: the same number of refused ones, and of complied ones, in every category used.

    Args:
        labels: What the model did.
        categories: Categories asked for; those with fewer than `MIN_PROMPTS` on a side are left out, with the reason.
        seed: Decides which prompts are used when a category has more than the smallest one, and the folds.
    """
    sides = {name: (_ids(labels, name, "refused"), _ids(labels, name, "complied")) for name in categories}
    counts = {name: _count(*both) for name, both in sides.items()}
    used = tuple(name for name in categories if counts[name].reason_left_out is None)
    n_side = [min((len(sides[name][side]) for name in used), default=0) for side in (0, 1)]
    ids: list[str] = []
    category: list[int] = []
    is_refused: list[bool] = []
    folds: list[int] = []
    for index, name in enumerate(used):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for side in (0, 1):
            drawn = generator.permutation(len(sides[name][side]))[: n_side[side]]
            fold_of = {sides[name][side][row]: order % N_FOLDS for order, row in enumerate(drawn)}
            for prompt_id in sorted(fold_of):
                ids.append(prompt_id)
                category.append(index)
                is_refused.append(side == 0)
                folds.append(fold_of[prompt_id])
    return Contrasts(
        tuple(ids), used, np.array(category, int), np.array(is_refused, bool), np.array(folds, int), counts
    )


def _ids(labels: RefusalLabels, category: str, behaviour: str) -> list[str]:
    def matches(label: PromptLabel) -> bool:
        """Return whether the prompt is of the category and the model behaved so."""
        return label.category == category and label.behaviour == behaviour

    return sorted(label.id for label in labels.prompts if matches(label))


def _count(refused: list[str], complied: list[str]) -> CategoryCounts:
    reason = None
    for name, n in (("refused", len(refused)), ("complied with", len(complied))):
        if n < MIN_PROMPTS and reason is None:
            reason = f"only {n} prompts {name}; at least {MIN_PROMPTS} are needed"
    return CategoryCounts(len(refused), len(complied), reason)
