"""Effects of removing sets of latents, measured on the model.

Removing a set C at a site sets its latents to the counterfactual values of the prompt's own category, at the readout
position, and lets the rest of the model run: x' = x - sum over C of (f - f_cf) W_dec[f]. Everything the SAE does not
reconstruct stays as it was. Keeping only C does the opposite: x' = x_cf + sum over C of (f - f_cf) W_dec[f].
Inducing C in a complied prompt sets its latents to what they are on refused prompts of the category it was found for.
effect = m(x) - m(x'), in logits, signed, per prompt, never clipped.

All sites, seeds and sets are stacked as rows of one batch that shares the prompts' cached prefix.

This module does not know how sets are chosen, except for the random ones that serve as control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutBatch, ReadoutRunner
from refusal.sites import Site


@dataclass(frozen=True)
class LatentBank:
    """What is needed to set some latents of one SAE: only those that any set of the job names."""

    site: Site
    change: Float[Tensor, "prompt node"]
    """f - f_cf of each prompt, its own category's counterfactual."""
    decoder: Float[Tensor, "node width"]
    """Rows of W_dec."""

    def removal(
        self, sets: Shaped[Tensor, "variant node"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "variant batch width"]:
        """Return what to add to x so that each set takes its counterfactual values."""
        return -torch.einsum("vn,bn,nd->vbd", sets.float(), self.change[rows], self.decoder)


class EffectJob(Protocol):
    """Sets of latents at one site whose effect is measured on every prompt."""

    @property
    def site(self) -> Site:
        """Where."""

    def __len__(self) -> int:
        """Return the number of sets."""

    def change(self, chosen: slice, rows: Int[Tensor, " batch"]) -> Float[Tensor, "variant batch width"]:
        """Return what some of the sets add to the activation, per set and prompt."""


@dataclass(frozen=True)
class Removal:
    """Sets whose latents take their counterfactual values."""

    bank: LatentBank
    sets: Shaped[Tensor, "variant node"]
    """Which latents; a weight between 0 and 1 takes a latent that part of the way."""
    keep_only: Float[Tensor, "prompt width"] | None = None
    """x_cf - x per prompt: given, everything but the set is removed, the error included."""

    @property
    def site(self) -> Site:
        """Where."""
        return self.bank.site

    def __len__(self) -> int:
        return len(self.sets)

    def change(self, chosen: slice, rows: Int[Tensor, " batch"]) -> Float[Tensor, "variant batch width"]:
        """Return what some of the sets add to the activation, per set and prompt."""
        removed = self.bank.removal(self.sets[chosen], rows)
        return removed if self.keep_only is None else self.keep_only[rows] - removed


@dataclass(frozen=True)
class Induction:
    """Sets whose latents take given values, each set its own, the same for all prompts."""

    site: Site
    sets: Shaped[Tensor, "variant node"]
    """As in a removal."""
    values: Float[Tensor, "variant node"]
    """What the latents of each set become."""
    latents: Float[Tensor, "prompt node"]
    """What they are."""
    decoder: Float[Tensor, "node width"]
    """Rows of W_dec."""

    def __len__(self) -> int:
        return len(self.sets)

    def change(self, chosen: slice, rows: Int[Tensor, " batch"]) -> Float[Tensor, "variant batch width"]:
        """Return what some of the sets add to the activation, per set and prompt."""
        step = (self.values[chosen, None] - self.latents[rows]) * self.sets[chosen, None]
        return step @ self.decoder


class add_to_variants:
    """An edit that adds `change` `[variant, batch, d_model]` to the variants from `first` on."""

    def __init__(self, first: int, change: Float[Tensor, "variant batch d_model"]) -> None:
        self.first = first
        self.change = change

    def __call__(self, acts: Float[Tensor, "variant batch d_model"]) -> Float[Tensor, "variant batch d_model"]:
        """Return the edited activations."""
        last = self.first + len(self.change)
        changed = acts[self.first : last] + self.change.to(acts)
        return torch.cat([acts[: self.first], changed, acts[last:]])


@dataclass(frozen=True)
class Effects:
    """Measured effects, one row a prompt in the order asked for."""

    metric: Float[Tensor, " prompt"]
    """m of the unchanged prompt, logits."""
    effect: list[Float[Tensor, "_ prompt"]]
    """Per job: m(x) - m(x'), logits."""


@torch.no_grad()
def measure_effects(
    runner: ReadoutRunner,
    metric: RefusalMetric,
    prompts: Sequence[int],
    jobs: Sequence[EffectJob],
    progress: Callable[[int], object] = lambda done: None,
) -> Effects:
    """Return the effect of each set of each job on each prompt.

    Args:
        runner: The model at the readout position.
        metric: The refusal metric m.
        prompts: Indices into the runner's prompts. Rows of the jobs' banks follow this order.
        jobs: What to remove where.
        progress: Called with the number of prompts that have been done since the last call.
    """
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    base = torch.zeros(len(row_of))
    effects = [torch.zeros(len(job), len(row_of)) for job in jobs]
    for batch in runner.batches(prompts):
        rows = torch.tensor([row_of[int(prompt)] for prompt in batch.prompts])
        plain = metric(batch.run(1).logits)[0].float().cpu()
        base[rows] = plain
        for pieces in _pack(jobs, batch.variants_that_fit):
            scores = _run_pieces(batch, metric, jobs, pieces, rows)
            first = 0
            for piece in pieces:
                n = piece.last - piece.first
                effects[piece.job][piece.first : piece.last, rows] = plain - scores[first : first + n]
                first += n
        progress(len(rows))
    return Effects(base, effects)


@dataclass(frozen=True)
class _Piece:
    """Sets `first` to `last` of one job, run together."""

    job: int
    first: int
    last: int


def _pack(jobs: Sequence[EffectJob], size: int) -> Iterator[list[_Piece]]:
    """Yield groups of pieces with at most `size` sets in all, every set once, in order."""
    group: list[_Piece] = []
    room = size
    for index, job in enumerate(jobs):
        first = 0
        while first < len(job):
            last = min(len(job), first + room)
            group.append(_Piece(index, first, last))
            room -= last - first
            first = last
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group


def _run_pieces(
    batch: ReadoutBatch,
    metric: RefusalMetric,
    jobs: Sequence[EffectJob],
    pieces: list[_Piece],
    rows: Int[Tensor, " batch"],
) -> Float[Tensor, "variant batch"]:
    edits, first = [], 0
    for piece in pieces:
        job = jobs[piece.job]
        change = job.change(slice(piece.first, piece.last), rows)
        edits.append(Edit(job.site, add_to_variants(first, change)))
        first += piece.last - piece.first
    return metric(batch.run(first, edits).logits).float().cpu()


def matched_random_sets(
    sets: Bool[np.ndarray, "variant node"],
    frequency: Float[np.ndarray, " node"],
    n_draws: int,
    generator: np.random.Generator,
) -> Bool[np.ndarray, "draw variant node"]:
    """Return random sets that match each set in size and in how often its latents are active.

    Each latent is replaced by one drawn among the `MATCH_POOL` latents outside all sets whose activation frequency is
    nearest, without using one twice in a draw: what other categories' circuits hold is no chance finding. Where too few
    are left outside all sets, latents outside the matched set alone serve. Latents that are never active are not drawn:
    removing them does nothing.

    Args:
        sets: The sets to match.
        frequency: Share of prompts on which each latent is active, in [0, 1].
        n_draws: Random sets per set.
        generator: Source of the draws.
    """
    drawn = np.zeros((n_draws, *sets.shape), bool)
    alive = np.flatnonzero(frequency > 0)
    in_any = np.asarray(sets.any(0))
    outside_all = alive[~in_any[alive]]
    for index, members in enumerate(sets):
        outside = outside_all if len(outside_all) >= members.sum() else alive[~members[alive]]
        for draw in range(n_draws):
            free = outside
            for latent in np.flatnonzero(members):
                if not len(free):
                    break
                nearest = np.argsort(np.abs(frequency[free] - frequency[latent]), kind="stable")[:MATCH_POOL]
                pick = free[generator.choice(nearest)]
                drawn[draw, index, pick] = True
                free = free[free != pick]
    return drawn


MATCH_POOL = 10
"""Latents of nearest activation frequency among which a random match is drawn."""
