"""One pass over prompts for directions: sums over groups of prompts in float64, and the activations of each prompt.

1. the positions: the last tokens that all prompts share (the end of the chat template), or as many as are asked for;
2. batches of prompts of like length run once; hooks keep these positions after every block and at the embeddings;
3. each batch is added to the sums of its groups; single prompts are kept in float32 while they fit a bound.

No more than one batch of activations is in memory besides what is kept. This module does not know what groups mean.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.directions.candidates import GroupSums, PromptActs
from refusal.errors import InputError
from refusal.models import ChatModel, SiteUse
from refusal.steering.run import Runs

log = logging.getLogger(__name__)

MAX_AUTO_POSITIONS = 8
"""Template positions that `auto` takes at most."""
KEPT_BYTES = 2**31
"""Activations of single prompts in memory, at most; above it only their readout position is kept."""


@dataclass(frozen=True)
class Activations:
    """What the pass over the prompts gives."""

    sums: GroupSums
    acts: PromptActs
    """One row per prompt, in the order given."""


def template_positions(token_ids: Sequence[Sequence[int]]) -> int:
    """Return how many last tokens all prompts share, at least 1: the end of the chat template.

    >>> template_positions([[5, 1, 2], [7, 8, 1, 2]])
    2
    """
    shortest = min(len(ids) for ids in token_ids)
    ends = [tuple(ids[-shortest:]) for ids in token_ids]
    shared = 0
    while shared < shortest and len({end[-1 - shared] for end in ends}) == 1:
        shared += 1
    return max(1, shared)


def positions_for(token_ids: Sequence[Sequence[int]], configured: str | int) -> tuple[int, ...]:
    """Return the positions to read, as negative offsets from the end of the prompt.

    Args:
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        configured: `auto`: those of the template, at most `MAX_AUTO_POSITIONS`; or a number.

    Raises:
        InputError: A prompt has fewer tokens than positions are asked for.
    """
    if configured == "auto":
        n = min(MAX_AUTO_POSITIONS, template_positions(token_ids))
    else:
        n = int(configured)
        shortest = min(len(ids) for ids in token_ids)
        if n > shortest:
            raise InputError(
                f"directions.n_positions: found {n}, and the shortest prompt has {shortest} tokens in its chat frame; "
                f"allowed are auto and 1 to {shortest}"
            )
    return tuple(range(-n, 0))


@torch.no_grad()
def collect(
    runs: Runs,
    token_ids: Sequence[Sequence[int]],
    groups: Sequence[int],
    positions: tuple[int, ...],
    prompt_ids: Sequence[str],
) -> Activations:
    """Run prompts once and return sums over their groups, and their own activations.

    Args:
        runs: The model and its batch size.
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        groups: The group of each prompt, from 0; -1: in no group, but kept.
        positions: As in `MeanDiffs`.
        prompt_ids: Names of the prompts.
    """
    model = runs.model
    n_groups = max(groups, default=-1) + 1
    shape = (len(positions), model.n_layers + 1, model.d_model)
    sums = torch.zeros(n_groups, *shape, dtype=torch.float64)
    kept = _kept_positions(len(token_ids), shape)
    acts = torch.empty(len(token_ids), kept, model.n_layers, model.d_model)
    order = sorted(range(len(token_ids)), key=lambda row: (len(token_ids[row]), row))
    group = torch.tensor(list(groups), dtype=torch.long)

    def run(rows: range) -> None:
        """Add one batch to the sums and keep its prompts' activations."""
        chosen = torch.tensor([order[row] for row in rows])
        values = _values(model, [token_ids[row] for row in chosen], positions)
        is_grouped = group[chosen] >= 0
        sums.index_add_(0, group[chosen][is_grouped], values[is_grouped].double())
        acts[chosen] = values[:, -kept:, 1:].float()

    runs.over([len(token_ids[row]) for row in order], run)
    counts = torch.bincount(group[group >= 0], minlength=n_groups)
    return Activations(
        GroupSums(sums[:, :, 1:], sums[:, :, 0], counts, positions),
        PromptActs(acts, positions[-kept:], tuple(prompt_ids)),
    )


def _kept_positions(n_prompts: int, shape: tuple[int, int, int]) -> int:
    n_positions, n_layers, d_model = shape
    if n_prompts * n_positions * n_layers * d_model * 4 <= KEPT_BYTES:
        return n_positions
    log.info("activations of single prompts are kept at the readout position only")
    return 1


def _values(
    model: ChatModel, token_ids: Sequence[Sequence[int]], positions: tuple[int, ...]
) -> Float[Tensor, "batch pos layer_and_embedding d_model"]:
    """Return the asked positions at the embeddings and after every block, on the CPU."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        """Copy the asked positions; the pass goes on unchanged."""
        found.append(value[:, list(positions)].cpu())

    use: SiteUse = keep
    tokens = model.pad(token_ids)
    with ExitStack() as stack:
        stack.enter_context(model.on_stream_start(use))
        for site in model.resolve_sites("all"):
            stack.enter_context(model.on_site(site, use))
        model.forward(tokens)
    return torch.stack(found, dim=2)
