"""Which positions of the two prompts of a pair correspond.

Positions are counted from the end: -1 is the readout position. Prompts that are left-padded to one width then line up
column by column. What corresponds:

- the end that all prompts share (chat frame): the same tokens in both prompts of any pair, whatever their lengths;
- every position, where both prompts have the same number of tokens.

A place that does not correspond in a pair is not patched there and not measured, rather than patched wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from refusal.models import ChatModel
from refusal.patching.pairs import ContrastPair, Unusable
from refusal.positions import first_own_position

PROBES = ("0", "x .", "(y")
"""Prompts that begin and end differently, so that what all prompts share is the chat frame and not a common word."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model is given it."""

    pair: ContrastPair
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]

    @property
    def is_equal_length(self) -> bool:
        """Whether every position of one prompt has one in the other."""
        return len(self.clean) == len(self.corrupted)

    @property
    def longest(self) -> int:
        """Tokens of the longer prompt."""
        return max(len(self.clean), len(self.corrupted))


@dataclass(frozen=True)
class Frame:
    """What all prompts share: the chat frame around what the user says."""

    n_before: int
    """Tokens before the user's words; at least 1."""
    n_after: int
    """Tokens after them, the readout position among them; at least 1."""

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]]) -> Frame:
        """Return the frame of some prompts.

        >>> Frame.of([[1, 2, 7, 8, 3], [1, 2, 9, 3]])
        Frame(n_before=2, n_after=1)
        """
        n_after = first_own_position([list(reversed(ids)) for ids in token_ids])
        shortest = min(map(len, token_ids))
        return cls(min(first_own_position(token_ids), max(1, shortest - n_after)), n_after)


@dataclass(frozen=True, order=True)
class Place:
    """Positions that are patched together: one, counted from the end (`-1`), the user's words (`content`), or `all`."""

    name: str

    @classmethod
    def at(cls, offset: int) -> Place:
        """Return the position `offset` from the end; 1 is the readout position."""
        return cls(f"-{offset}")

    @property
    def offset(self) -> int | None:
        """How far from the end; None for several positions."""
        return int(self.name[1:]) if self.name.startswith("-") else None

    @property
    def is_readout(self) -> bool:
        """Whether it is the readout position alone."""
        return self.offset == 1

    def __str__(self) -> str:
        return self.name


READOUT, CONTENT, EVERYWHERE = Place("-1"), Place("content"), Place("all")


def columns(place: Place, pair: TokenPair, frame: Frame, width: int) -> Bool[Tensor, " pos"]:
    """Return which columns of a pair, left-padded to a width, a place means; none where it does not correspond.

    >>> pair = TokenPair(ContrastPair("a", "", ""), (1, 2, 7, 8, 3), (1, 2, 7, 9, 3))
    >>> columns(CONTENT, pair, Frame(2, 1), 6).int().tolist()
    [0, 0, 0, 1, 1, 0]
    """
    chosen = torch.zeros(width, dtype=torch.bool)
    length = len(pair.clean)
    if place.offset is not None:
        if place.offset <= frame.n_after or (pair.is_equal_length and place.offset <= length):
            chosen[width - place.offset] = True
    elif pair.is_equal_length:
        first = frame.n_before if place == CONTENT else 0
        last = frame.n_after if place == CONTENT else 0
        chosen[width - length + first : width - last] = True
    return chosen


def tokenise(
    model: ChatModel, pairs: Sequence[ContrastPair], system_prompt: str | None, answer_prefix: Sequence[int]
) -> tuple[list[TokenPair], Frame]:
    """Return the pairs as tokens in their chat frame, with what every answer begins with, and the frame."""
    texts = [text for pair in pairs for text in (pair.clean, pair.corrupted)]
    token_ids = [[*ids, *answer_prefix] for ids in model.tokenize([*texts, *PROBES], system_prompt)]
    found = [
        TokenPair(pair, tuple(token_ids[2 * row]), tuple(token_ids[2 * row + 1])) for row, pair in enumerate(pairs)
    ]
    return found, Frame.of(token_ids)


def unaligned(pairs: Sequence[TokenPair], *, only_equal: bool, limit: int | None) -> list[Unusable]:
    """Return the pairs that cannot be aligned as asked, or do not fit the model.

    Args:
        pairs: The pairs.
        only_equal: Whether both prompts must have the same number of tokens.
        limit: Most tokens of a prompt; None: no limit.
    """
    found: list[Unusable] = []
    for each in pairs:
        if each.clean == each.corrupted:
            found.append(Unusable(each.pair.id, "both sides have the same tokens"))
        elif limit is not None and each.longest > limit:
            found.append(Unusable(each.pair.id, f"a prompt is longer than the model's context of {limit} tokens"))
        elif only_equal and not each.is_equal_length:
            found.append(
                Unusable(each.pair.id, "the prompts have different numbers of tokens (patching.align: length)")
            )
    return found


def places(pairs: Sequence[TokenPair], frame: Frame, n_template: int, *, each_position: bool) -> list[Place]:
    """Return the places of a layer x position map, from the end backwards, then the blocks.

    Args:
        pairs: The pairs.
        frame: Their frame.
        n_template: How many of the last template positions, the readout position among them.
        each_position: Whether every position that at least half of the pairs have comes by itself too.
    """
    equal = [pair for pair in pairs if pair.is_equal_length]
    deepest = min(n_template, frame.n_after)
    if each_position and 2 * len(equal) >= len(pairs):
        deepest = max(deepest, sorted(len(pair.clean) for pair in equal)[(len(equal) - 1) // 2] - frame.n_before)
    found = [Place.at(offset) for offset in range(1, deepest + 1)]
    return [*found, CONTENT, EVERYWHERE] if equal else found
