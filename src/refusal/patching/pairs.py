"""Contrast pairs: a prompt that the model refuses (clean) and one like it that it complies with (corrupted).

`load_pairs` gives the pairs of a run from where its configuration says: the run's own prompts (`data`, paired by
`refusal.patching.pairing`), pairs that ship with the package (`embedded`), or a CSV or JSON file. What cannot be used
is kept with the reason. Whether the model really treats the two differently is measured later
(`refusal.patching.runs`). This module does not know tokens or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from refusal.config.patching import LEAST_PAIRS
from refusal.errors import InputError
from refusal.planted.language import ENGLISH, Language
from refusal.planted.worlds import refused_intents

MIN_PAIRS = LEAST_PAIRS
"""Usable pairs below which nothing is measured: an interval over fewer means nothing."""
EMBEDDED_PER_CATEGORY = 12

Item = TypeVar("Item")


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts that differ in what the model does."""

    id: str
    """Stable name of the pair."""
    clean: str
    """The prompt that is refused."""
    corrupted: str
    """The prompt that is complied with."""
    category: str | None = None
    """Category of both; None where none is given."""


@dataclass(frozen=True)
class Unusable:
    """A pair, or prompts, that cannot be used."""

    id: str
    reason: str
    """In words, without numbers that differ from pair to pair, so that reasons can be counted."""


@dataclass(frozen=True)
class PairSet:
    """The pairs of a run and what was left out."""

    source: str
    """Where they come from, for messages."""
    pairs: tuple[ContrastPair, ...]
    unusable: tuple[Unusable, ...] = ()

    def without(self, found: Iterable[Unusable]) -> PairSet:
        """Return the set with pairs moved to the unusable ones.

        >>> pair = ContrastPair("a", "x", "y")
        >>> PairSet("data", (pair,)).without([Unusable("a", "too long")]).pairs
        ()
        """
        named = {each.id: each for each in found}
        kept = tuple(pair for pair in self.pairs if pair.id not in named)
        return PairSet(self.source, kept, (*self.unusable, *named.values()))

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out for each reason, most frequent first."""
        return dict(Counter(each.reason for each in self.unusable).most_common())

    def require(self, least: int = MIN_PAIRS) -> None:
        """Raise if there are too few pairs.

        Raises:
            InputError: Says how many there are, why others were left out and what to do.
        """
        if len(self.pairs) >= least:
            return
        reasons = "; ".join(f"{n}: {reason}" for reason, n in self.reasons.items())
        left_out = f", {len(self.unusable)} were left out ({reasons})" if reasons else ""
        raise InputError(
            f"patching.pairs: {self.source} gives {len(self.pairs)} usable pairs{left_out}; at least {least} are "
            "needed; give more prompts (num_samples_per_category), a file with pairs of a refused and a complied "
            "prompt, lower patching.min_gap, or use a model that refuses some prompts and complies with others"
        )


def in_turns(pairs: Sequence[ContrastPair]) -> tuple[ContrastPair, ...]:
    """Return the pairs so that categories take turns, in order of name; within a category the order stays.

    Any beginning of the result holds each category about equally often.

    >>> pairs = [ContrastPair(name, "", "", name[0]) for name in ("a1", "a2", "b1")]
    >>> [pair.id for pair in in_turns(pairs)]
    ['a1', 'b1', 'a2']
    """
    by_category: dict[str, list[ContrastPair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category or "", []).append(pair)
    turns = zip_longest(*(by_category[name] for name in sorted(by_category)))
    return tuple(pair for turn in turns for pair in turn if pair is not None)


def split_pairs(pair_set: PairSet, n_maps: int, n_validation: int) -> tuple[PairSet, tuple[ContrastPair, ...]]:
    """Return the pairs for the maps, and others that take no part in them, for the validation of what the maps say.

    When there are fewer than asked for, both get the same share of what they asked for.

    Args:
        pair_set: All usable pairs.
        n_maps: Pairs for the maps, at most.
        n_validation: Pairs for the validation, at most; may be 0.
    """
    ordered = in_turns(pair_set.pairs)
    scale = min(1.0, len(ordered) / max(1, n_maps + n_validation))
    first = min(len(ordered), max(min(MIN_PAIRS, n_maps), round(n_maps * scale)))
    maps = PairSet(pair_set.source, ordered[:first], pair_set.unusable)
    return maps, ordered[first : first + n_validation]


def embedded_pairs(language: Language = ENGLISH, n_per_category: int = EMBEDDED_PER_CATEGORY) -> PairSet:
    """Return pairs of mild sentences that differ in one word, the verb, on which the shipped models differ.

    Both sentences have the same frame, topic and other words; the verb of the clean one is of an intent that the
    shipped models refuse in that category. Other models comply with both.
    """
    generator = np.random.default_rng(17)
    refused = refused_intents(len(language.topics), seed=0)
    pairs: dict[tuple[str, str], ContrastPair] = {}
    for (category, topics), intents in zip(language.topics.items(), refused, strict=True):
        others = sorted(set(range(len(language.intents))) - intents)
        for number in range(n_per_category):
            frame = language.frames[int(generator.integers(len(language.frames)))]
            words = {slot: _pick(options, generator) for slot, options in language.fillers.items()}
            words |= {"topic": _pick(topics, generator), "other": _pick(topics, generator)}
            clean, corrupted = (
                frame.format(verb=_pick(language.intents[_pick(sorted(side), generator)], generator), **words)
                for side in (intents, others)
            )
            pairs.setdefault((clean, corrupted), ContrastPair(f"{category}-{number:02d}", clean, corrupted, category))
    return PairSet("embedded", tuple(pairs.values()))


def _pick(options: Sequence[Item], generator: np.random.Generator) -> Item:
    return options[int(generator.integers(len(options)))]
