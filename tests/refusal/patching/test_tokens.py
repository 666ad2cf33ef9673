"""Which positions of the two prompts of a pair correspond."""

from __future__ import annotations

import pytest
from patching_runs import PAIRS, runs_of
from tiny_models import make_model

from refusal.patching.pairs import ContrastPair
from refusal.patching.tokens import (
    CONTENT,
    EVERYWHERE,
    READOUT,
    Frame,
    Place,
    TokenPair,
    columns,
    places,
    tokenise,
    unaligned,
)

EQUAL = TokenPair(PAIRS[0], (1, 2, 7, 8, 3, 4), (1, 2, 9, 8, 3, 4))
UNEQUAL = TokenPair(PAIRS[1], (1, 2, 7, 8, 3, 4), (1, 2, 9, 3, 4))
FRAME = Frame(n_before=2, n_after=2)


def chosen(place, pair, width=7):
    return columns(place, pair, FRAME, width).nonzero().ravel().tolist()


def test_places_of_a_pair_of_equal_length():
    assert chosen(READOUT, EQUAL) == [6]
    assert chosen(Place.at(3), EQUAL) == [4]
    assert chosen(CONTENT, EQUAL) == [3, 4]
    assert chosen(EVERYWHERE, EQUAL) == [1, 2, 3, 4, 5, 6]
    assert chosen(Place.at(7), EQUAL) == [], "before the prompt"


def test_of_a_pair_of_unequal_length_only_the_common_end_corresponds():
    assert chosen(READOUT, UNEQUAL) == [6]
    assert chosen(Place.at(2), UNEQUAL) == [5]
    assert chosen(Place.at(3), UNEQUAL) == []
    assert chosen(CONTENT, UNEQUAL) == chosen(EVERYWHERE, UNEQUAL) == []


def test_the_frame_is_what_the_chat_template_adds_even_where_all_prompts_end_alike():
    model = make_model("llama")
    alike = [ContrastPair("a", "tell me about my garden", "please about my garden")]
    _, frame = tokenise(model, alike, None, ())
    assert frame == Frame(n_before=2, n_after=1), "<s> <user> ... <assistant>"
    _, frame = tokenise(model, alike, None, (5, 6))
    assert frame == Frame(n_before=2, n_after=3), "an answer prefix is part of the frame"


def test_places_of_a_map_name_positions_only_where_enough_pairs_have_them():
    names = lambda pairs, each: [str(p) for p in places(pairs, FRAME, 4, each_position=each)]  # noqa: E731
    assert names([EQUAL], False) == ["-1", "-2", "content", "all"]
    assert names([EQUAL], True) == ["-1", "-2", "-3", "-4", "content", "all"]
    assert names([UNEQUAL], True) == ["-1", "-2"]


@pytest.mark.parametrize(
    ("pair", "only_equal", "limit", "reason"),
    [
        (EQUAL, True, None, None),
        (UNEQUAL, False, None, None),
        (UNEQUAL, True, None, "different numbers of tokens"),
        (EQUAL, False, 5, "context of 5 tokens"),
        (TokenPair(PAIRS[0], (1, 2), (1, 2)), False, None, "both sides have the same tokens"),
    ],
)
def test_pairs_that_cannot_be_aligned_are_named(pair, only_equal, limit, reason):
    found = unaligned([pair], only_equal=only_equal, limit=limit)
    assert (reason in found[0].reason) if reason else not found


def test_a_gap_that_is_too_small_leaves_a_pair_out_and_the_rest_as_they_were():
    runs = runs_of(make_model("llama"))
    largest = float(runs.gap.max())
    kept, found = runs.without_small_gaps(largest)
    assert len(kept) == 1
    assert len(found) == 3
    assert kept.gap.tolist() == [largest]
    assert "logits above that of the corrupted one" in found[0].reason
