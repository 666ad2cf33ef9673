"""Pair refused with complied prompts of a run: same category, as near as possible the same wording.

1. every refused prompt of a category is compared with every complied one by their tokens;
2. pairs of equal length come first; then those that share most of their tokens at the beginning and the end (a common
   sentence frame); then those that share most words anywhere;
3. the best pair is taken, its two prompts are used up, and so on.

The order of the prompts does not matter, and every prompt is used at most once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from refusal.patching.pairs import ContrastPair, PairSet, Unusable
from refusal.schemas import PromptLabel

_NEITHER = "the answer neither refuses nor complies"
_NO_PARTNER = "no prompt of the same category on the other side is left"


def pairs_of_run(
    labels: Sequence[PromptLabel], texts: Mapping[str, str], token_ids: Mapping[str, list[int]]
) -> PairSet:
    """Return the pairs of a run's prompts.

    Args:
        labels: What the model did on each prompt.
        texts: The prompts by id.
        token_ids: The prompts' tokens by id, in their chat frame.
    """
    pairs: list[ContrastPair] = []
    unusable = [Unusable(each.id, _NEITHER) for each in labels if each.behaviour not in ("refused", "complied")]
    for category in sorted({label.category for label in labels}):
        of_category = [label for label in labels if label.category == category]
        refused, complied = (
            sorted(label.id for label in of_category if label.behaviour == side) for side in ("refused", "complied")
        )
        chosen = match([token_ids[each] for each in refused], [token_ids[each] for each in complied])
        for row, column in chosen:
            clean, corrupted = refused[row], complied[column]
            pairs.append(ContrastPair(f"{clean}-{corrupted}", texts[clean], texts[corrupted], category))
        rows, columns = {row for row, _ in chosen}, {column for _, column in chosen}
        unusable += [Unusable(each, _NO_PARTNER) for row, each in enumerate(refused) if row not in rows]
        unusable += [Unusable(each, _NO_PARTNER) for column, each in enumerate(complied) if column not in columns]
    return PairSet("data", tuple(pairs), tuple(unusable))


def match(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return pairs of indices, best first, each index at most once.

    >>> match([[1, 2, 3], [7, 8]], [[7, 9], [1, 5, 3]])
    [(0, 1), (1, 0)]
    """
    if not first or not second:
        return []
    lengths = [np.array([len(tokens) for tokens in side]) for side in (first, second)]
    is_unequal = lengths[0][:, None] != lengths[1][None, :]
    frame, overlap = _frame_share(first, second), _word_overlap(first, second)
    order = np.lexsort((np.arange(is_unequal.size), -overlap.ravel(), -frame.ravel(), is_unequal.ravel()))
    chosen: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for place in order:
        row, column = divmod(int(place), len(second))
        if row not in used[0] and column not in used[1]:
            chosen.append((row, column))
            used[0].add(row)
            used[1].add(column)
        if len(chosen) == min(len(first), len(second)):
            break
    return chosen


def _frame_share(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Float[np.ndarray, "_ _"]:
    """Return (common beginning + common end) / length of the longer one, for every two; at most 1."""
    longest = max(len(tokens) for tokens in (*first, *second))
    common = [
        np.cumprod(_padded(first, longest, step)[:, None] == _padded(second, longest, step, filler=-2)[None], axis=-1)
        for step in (1, -1)
    ]
    length = np.maximum.outer([len(tokens) for tokens in first], [len(tokens) for tokens in second])
    return np.asarray(np.minimum(1.0, sum(each.sum(-1) for each in common) / length))


def _padded(side: Sequence[Sequence[int]], width: int, step: int, filler: int = -1) -> Int[np.ndarray, "prompt pos"]:
    """Return tokens from the beginning (step 1) or from the end (step -1), filled up with `filler`."""
    rows = np.full((len(side), width), filler)
    for row, tokens in enumerate(side):
        rows[row, : len(tokens)] = tokens[::step]
    return rows


def _word_overlap(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Float[np.ndarray, "_ _"]:
    """Return the Jaccard index of the sets of tokens, for every two."""
    tokens = {token: place for place, token in enumerate(sorted({t for ids in (*first, *second) for t in ids}))}
    held = [np.zeros((len(side), len(tokens)), np.float32) for side in (first, second)]
    for side, rows in zip((first, second), held, strict=True):
        for row, ids in enumerate(side):
            rows[row, [tokens[token] for token in ids]] = 1
    both = held[0] @ held[1].T
    either = held[0].sum(1)[:, None] + held[1].sum(1)[None] - both
    return np.asarray(both / np.maximum(either, 1), dtype=np.float64)
