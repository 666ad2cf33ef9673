"""Train, validation and test prompts: directions are made on the first, selected on the second, judged on the third.

A prompt is in one split. Within each category, dataset label and behaviour the shares are kept as well as whole prompts
allow; which prompt goes where depends on the seed and on the stratum alone, so another category changes nothing.
Prompts that were partly refused or cannot be judged are in no split. Knows labels, not activations.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from refusal.labels import Behaviour
from refusal.schemas import PromptLabel


class Part(StrEnum):
    """What a prompt is used for."""

    TRAIN = "train"
    """Differences in means, probes, references."""
    VALIDATION = "validation"
    """Selection."""
    TEST = "test"
    """Evaluation: nothing was chosen on it."""


@dataclass(frozen=True)
class Splits:
    """The part of each prompt; None for prompts in no split."""

    parts: tuple[Part | None, ...]

    def rows(self, part: Part) -> list[int]:
        """Return the rows of a part, in order."""
        return [row for row, of_row in enumerate(self.parts) if of_row is part]


def split(labels: Sequence[PromptLabel], shares: tuple[float, float, float], seed: int) -> Splits:
    """Return the part of each prompt.

    Args:
        labels: What the model did, one per prompt.
        shares: Of train, validation and test; they sum to 1.
        seed: Decides the draw.
    """
    strata: dict[tuple[str, str, str], list[int]] = {}
    for row, label in enumerate(labels):
        if label.behaviour in (Behaviour.REFUSED, Behaviour.COMPLIED):
            strata.setdefault((label.category, label.dataset_label, label.behaviour), []).append(row)
    parts: list[Part | None] = [None] * len(labels)
    for name, rows in sorted(strata.items()):
        generator = np.random.default_rng([seed, zlib.crc32("/".join(name).encode())])
        # by id, so that the order of the prompts does not matter
        drawn = generator.permutation(sorted(rows, key=lambda row: labels[row].id))
        ends = np.floor(np.cumsum(shares) * len(rows) + generator.random()).astype(int).clip(0, len(rows))
        ends[-1] = len(rows)
        for part, first, last in zip(Part, (0, *ends[:-1]), ends, strict=True):
            for row in drawn[first:last]:
                parts[int(row)] = part
    return Splits(tuple(parts))


def spread(rows: Sequence[int], categories: Sequence[str], at_most: int) -> list[int]:
    """Return at most some of the rows, spread evenly over their categories, in order.

    Args:
        rows: Rows to choose from; earlier ones of a category go first.
        categories: The category of each prompt, by row.
        at_most: How many.

    >>> spread([0, 1, 2, 3], ["a", "a", "a", "b"], 2)
    [0, 3]
    """
    taken: dict[str, int] = {}
    ranked = []
    for row in rows:
        rank = taken.get(categories[row], 0)
        taken[categories[row]] = rank + 1
        ranked.append((rank, row))
    return sorted(row for _, row in sorted(ranked)[:at_most])
