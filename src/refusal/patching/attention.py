"""Where heads look: attention from the readout position, averaged over pairs, by group of source tokens.

Attention weights exist only in the eager implementation, so a model runs with it inside `eager_attention` and goes back
to its own afterwards. Where a head looks does not say what it reads there; it belongs beside the patching, not in its
place (Jain and Wallace 1902.10186).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.errors import InputError
from refusal.models import ChatModel
from refusal.patching.runs import PairBatch, PairRuns
from refusal.patching.units import Side, Unit

GROUPS = ("before", "same words", "other words", "after", "readout")
"""Groups of source tokens. before: the chat frame before the user's words; same words, other words: the user's words
that both prompts of a pair have at a position, and those they differ in (all of them where lengths differ); after: the
chat frame's end without the readout position; readout: the readout position itself."""
PAIRS_AT_ONCE = 4
"""Pairs whose attention weights of all layers are held at once."""


@dataclass(frozen=True)
class AttentionPattern:
    """Where one head looks from the readout position."""

    layer: int
    head: int
    side: Side
    weights: Float[np.ndarray, "pair group"]
    """Share of the attention on each group of `GROUPS`; a row sums to 1."""
    enrichment: Float[np.ndarray, "pair group"]
    """Mean weight of a token of the group over the mean weight of a token of the prompt; nan where a group is empty."""


@contextmanager
def eager_attention(model: ChatModel) -> Iterator[None]:
    """Run attention in its eager form inside the `with`; the implementation is as before when it ends.

    Raises:
        InputError: The model cannot change its implementation.
    """
    before = {id(config): (config, config._attn_implementation) for config in _configs(model.model)}
    try:
        model.model.set_attn_implementation("eager")
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"models: {model.name}: its attention has no eager form ({error}), so attention patterns cannot be read; "
            "set patching.attention: false"
        ) from error
    try:
        yield
    finally:
        for config, implementation in before.values():
            config._attn_implementation = implementation


def _configs(module: Any) -> Iterator[Any]:
    """Yield the configurations that the parts of a model look at."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation"):
            yield config


@torch.no_grad()
def attention_patterns(runs: PairRuns, heads: Sequence[Unit]) -> list[AttentionPattern]:
    """Return where heads look on both sides of every pair, in the order of the heads, clean before corrupted.

    Raises:
        InputError: The model gives no attention weights.
    """
    shape = (len(runs), len(GROUPS))
    found = {(row, side): (np.zeros(shape), np.zeros(shape)) for row in range(len(heads)) for side in Side}
    small = PairRuns(runs.model, runs.metric, runs.pairs, runs.frame, batch_size=PAIRS_AT_ONCE)
    with eager_attention(runs.model):
        for batch in small.batches():
            for side in Side:
                attentions = _weights(runs.model, batch, side)
                groups = token_groups(batch, runs, side)
                for row, unit in enumerate(heads):
                    assert unit.head is not None, unit
                    weights = attentions[unit.site.layer][:, unit.head, -1].float().cpu()
                    shares, rich = _by_group(weights, groups)
                    found[row, side][0][list(batch.rows)] = shares
                    found[row, side][1][list(batch.rows)] = rich
    return [
        AttentionPattern(unit.site.layer, int(unit.head or 0), side, *found[row, side])
        for row, unit in enumerate(heads)
        for side in Side
    ]


def _weights(model: ChatModel, batch: PairBatch, side: Side) -> Sequence[Float[Tensor, "batch head pos key"]]:
    tokens = batch.tokens[side]
    output = model.forward(tokens, output_attentions=True)
    attentions = output.attentions
    if not attentions or any(each is None for each in attentions):
        raise InputError(
            f"models: {model.name}: gives no attention weights, so attention patterns cannot be read; set "
            "patching.attention: false"
        )
    return tuple(attentions)


def token_groups(batch: PairBatch, runs: PairRuns, side: Side) -> Float[Tensor, "group batch pos"]:
    """Return 1 where a token of a side's prompt is of a group of `GROUPS`; every token is of exactly one."""
    width, frame = batch.width, runs.frame
    groups = torch.zeros(len(GROUPS), len(batch.pairs), width)
    for row, pair in enumerate(batch.pairs):
        own: tuple[int, ...] = getattr(pair, side)
        other: tuple[int, ...] = pair.corrupted if side is Side.CLEAN else pair.clean
        start, first, last = width - len(own), width - len(own) + frame.n_before, width - frame.n_after
        groups[0, row, start:first] = 1
        for column in range(first, last):
            place = column - start
            is_same = pair.is_equal_length and own[place] == other[place]
            groups[1 if is_same else 2, row, column] = 1
        groups[3, row, last : width - 1] = 1
        groups[4, row, width - 1] = 1
    return groups


def _by_group(
    weights: Float[Tensor, "batch pos"], groups: Float[Tensor, "group batch pos"]
) -> tuple[Float[np.ndarray, "batch group"], Float[np.ndarray, "batch group"]]:
    """Return the share of each group, and the mean weight of its tokens over that of all tokens."""
    weights = weights[:, -groups.shape[-1] :]
    shares = torch.einsum("bp,gbp->bg", weights, groups)
    counts = groups.sum(-1).T
    each = torch.where(counts > 0, shares / counts.clamp_min(1), torch.nan)
    return shares.double().numpy(), (each * counts.sum(1, keepdim=True)).double().numpy()
