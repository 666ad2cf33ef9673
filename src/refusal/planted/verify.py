"""Check on fresh prompts that a planted model does what its causal model says, and does it where it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from refusal.planted.data import language_of
from refusal.planted.interchange import Exchange, Pass, neurons_of, run
from refusal.planted.pool import first_tokens, make_pool
from refusal.planted.worlds import World, after_interchange

N_PROMPTS = 1000
LIMITS = {"behaviour": 0.98, "interchange": 0.97, "single_slices": 0.97, "necessity_error": 0.05, "outside": 0.95}
"""What a model must reach to be shipped; `necessity_error` is an upper limit."""
PATTERNS = 4
"""Random sets of carriers that are interchanged at each planted layer."""


@dataclass(frozen=True)
class Checks:
    """Results on fresh prompts, as shares of prompts; None where the world has no mechanism to check."""

    behaviour: float | None
    """Greedy first token is the expected one; None where answers are left to chance."""
    interchange: float | None = None
    """Refusal is as the causal model says after random slices took another prompt's values; worst planted layer."""
    single_slices: float | None = None
    """The same for each slice alone; worst slice and layer."""
    necessity_error: float | None = None
    """Largest deviation from the truth of the share of a category's refusals that a silenced slice removes."""
    outside: float | None = None
    """Refusal is unchanged when every neuron outside the slices takes another prompt's value; worst planted layer."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What falls short of `LIMITS`, in words."""
        found = {name: getattr(self, name) for name in LIMITS}
        return tuple(
            f"{name} {value:.3f} (limit {LIMITS[name]})"
            for name, value in found.items()
            if value is not None and (value > LIMITS[name] if name == "necessity_error" else value < LIMITS[name])
        )


class _Verifier:
    """Runs exchanges on one set of fresh prompts."""

    def __init__(self, world: World, model: Any, tokenizer: Any, n: int, seed: int) -> None:
        self.generator = np.random.default_rng([seed, 14])
        self.world = world
        self.model = model
        self.pool = make_pool(world, tokenizer, n, self.generator)
        self.first = first_tokens(language_of(world), tokenizer)
        self.source = torch.from_numpy(self.generator.permutation(n))

    def behaviour(self) -> float:
        """Return how often the first token is the expected one."""
        base = run(self.model, self.pool).base
        return float((base.argmax(-1) == self.pool.answers[:, 0]).float().mean())

    def _refuses(self, found: Pass) -> Bool[Tensor, "exchange prompt"]:
        logits = found.exchanged
        return logits[..., self.first[1]].logsumexp(-1) > logits[..., self.first[0]].logsumexp(-1)

    def interchange(self, index: int, carriers: Bool[Tensor, "exchange prompt carrier"]) -> float:
        """Return the worst agreement with the causal model over sets of carriers, at one planted layer."""
        layer = self.world.planted_layers[index]
        slices = self.world.slices(layer)
        values = self.pool.values[index, :, : len(slices)].numpy()
        exchanges = [Exchange(layer, self.source, neurons_of(slices, chosen, self.world.d_mlp)) for chosen in carriers]
        found = self._refuses(run(self.model, self.pool, exchanges))
        agreement = []
        for refuses, chosen in zip(found, carriers, strict=True):
            wanted = torch.from_numpy(after_interchange(values, values[self.source], chosen.numpy()))
            agreement.append(float((refuses == wanted).float().mean()))
        return min(agreement)

    def outside(self, layer: int) -> float:
        """Return how often refusal is unchanged when everything but the slices is resampled."""
        chosen = torch.ones(len(self.pool), self.world.d_mlp, dtype=torch.bool)
        chosen[:, : self.world.slices(layer)[-1][1]] = False
        found = self._refuses(run(self.model, self.pool, [Exchange(layer, self.source, chosen)]))
        return float((found[0] == self.pool.is_refused).float().mean())

    def necessity_error(self, index: int) -> float:
        """Return the largest deviation from the truth when one slice takes the values of complied prompts.

        A silenced slice removes the refusals of the categories that no other slice carries.
        """
        layer, world, pool = self.world.planted_layers[index], self.world, self.pool
        slices, carriers = world.slices(layer), world.carriers(layer)
        complied = torch.nonzero(~pool.is_refused).flatten().numpy()
        source = torch.from_numpy(self.generator.choice(complied, len(pool)))
        silenced = torch.eye(len(slices), dtype=torch.bool)[:, None, :].expand(-1, len(pool), -1)
        exchanges = [Exchange(layer, source, neurons_of(slices, chosen, world.d_mlp)) for chosen in silenced]
        removed = (~self._refuses(run(self.model, pool, exchanges))).float()
        worst = 0.0
        for category, name in enumerate(language_of(world).topics):
            rows = pool.is_refused & (pool.category == category)
            for slice_index, found in enumerate(removed[:, rows].mean(1).tolist()):
                left = [each for other, each in enumerate(carriers) if other != slice_index and name in each]
                worst = max(worst, abs(found - (0.0 if left else 1.0)))
        return worst


@torch.no_grad()
def verify(world: World, model: Any, tokenizer: Any, *, n_prompts: int = N_PROMPTS, seed: int = 99) -> Checks:
    """Return the checks of a model on prompts that training did not draw.

    Args:
        world: What the model is to be.
        model: The network.
        tokenizer: Its tokenizer.
        n_prompts: Fresh prompts.
        seed: Decides them; training uses the world's own.
    """
    verifier = _Verifier(world, model, tokenizer, n_prompts, seed)
    if not world.is_planted:
        return Checks(verifier.behaviour() if world.mechanism == "never-refuses" else None)
    singles, patterns, outside, necessity = [], [], [], []
    for index, layer in enumerate(world.planted_layers):
        n_slices = len(world.slices(layer))
        one = torch.eye(n_slices, dtype=torch.bool)[:, None, :].expand(-1, n_prompts, -1)
        some = torch.from_numpy(verifier.generator.random((PATTERNS, n_prompts, n_slices)) < 0.5)
        singles.append(verifier.interchange(index, one))
        patterns.append(verifier.interchange(index, some))
        outside.append(verifier.outside(layer))
        necessity.append(verifier.necessity_error(index))
    return Checks(verifier.behaviour(), min(patterns), min(singles), max(necessity), min(outside))
