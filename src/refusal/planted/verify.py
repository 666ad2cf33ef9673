"""Check on fresh prompts that a planted model does what its causal model says, and does it where it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refusal.planted.slices import Swap, neurons_of, recorded, swapped
from refusal.planted.train import PromptPool, first_tokens, make_pool, run
from refusal.planted.worlds import World, after_interchange

N_PROMPTS = 1000
LIMITS = {"behaviour": 0.98, "interchange": 0.97, "single_slices": 0.97, "necessity_error": 0.05, "outside": 0.95}
"""What a model must reach to be shipped; `necessity_error` is an upper limit."""


@dataclass(frozen=True)
class Checks:
    """Results on fresh prompts, as shares of prompts."""

    behaviour: float
    """Greedy first token is the expected one."""
    interchange: float
    """Refusal is as the causal model says after random slices took another prompt's values; worst planted layer."""
    single_slices: float
    """The same for each slice alone; worst slice and layer."""
    necessity_error: float
    """Largest deviation from the truth of the share of a category's refusals that a silenced slice removes."""
    outside: float
    """Refusal is unchanged when every neuron outside the slices takes another prompt's value; worst planted layer."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What falls short of `LIMITS`, in words."""
        short = [name for name, limit in LIMITS.items() if name != "necessity_error" and getattr(self, name) < limit]
        if self.necessity_error > LIMITS["necessity_error"]:
            short.append("necessity_error")
        return tuple(f"{name} {getattr(self, name):.3f} (limit {LIMITS[name]})" for name in short)


class _Verifier:
    """Runs interchanges on one set of fresh prompts."""

    def __init__(self, world: World, model: Any, tokenizer: Any, n: int, seed: int) -> None:
        generator = np.random.default_rng([seed, 14])
        self.world = world
        self.model = model
        self.pool: PromptPool = make_pool(world, tokenizer, n, generator)
        self.first = first_tokens(tokenizer)
        self.position = self.pool.input_ids.shape[1] - 1
        self.source = torch.from_numpy(generator.permutation(n))
        self.random = torch.from_numpy(generator.random((n, len(world.groups))) < 0.5)
        with recorded(model, world.planted_layers, self.position) as neurons:
            logits = run(model, self.pool)[:, -1]
        self.neurons = dict(neurons)
        self.behaviour = float((logits.argmax(-1) == self.pool.answers[:, 0]).float().mean())

    def refuses(self, swap: Swap) -> Tensor:
        """Return whether the model leans to refusing under a swap."""
        with swapped(self.model, swap, self.position):
            logits = run(self.model, self.pool)[:, -1]
        return logits[:, self.first[1]].logsumexp(-1) > logits[:, self.first[0]].logsumexp(-1)

    def interchange(self, layer: int, groups: Tensor) -> float:
        """Return how often the model agrees with the causal model after the groups' slices were swapped."""
        variables = self.pool.variables
        wanted = after_interchange(variables.numpy(), variables[self.source].numpy(), groups.numpy())
        chosen = neurons_of(self.world.slices, groups, self.world.d_mlp)
        found = self.refuses(Swap(layer, self.neurons[layer][self.source], chosen))
        return float((found == torch.from_numpy(wanted)).float().mean())

    def outside(self, layer: int) -> float:
        """Return how often refusal is unchanged when everything but the slices is resampled."""
        chosen = torch.ones(len(self.pool.style), self.world.d_mlp, dtype=torch.bool)
        chosen[:, : self.world.slices[-1][1]] = False
        found = self.refuses(Swap(layer, self.neurons[layer][self.source], chosen))
        return float((found == self.pool.is_refused).float().mean())

    def necessity_error(self, layer: int) -> float:
        """Return the largest deviation from the truth when one slice takes its mean value on complied prompts."""
        refused = self.pool.is_refused
        group = self.pool.variables.float().argmax(1)
        complied_mean = self.neurons[layer][~refused].mean(0)
        worst = 0.0
        for silenced in range(len(self.world.groups)):
            groups = torch.zeros(len(refused), len(self.world.groups), dtype=torch.bool)
            groups[:, silenced] = True
            chosen = neurons_of(self.world.slices, groups, self.world.d_mlp)
            still = self.refuses(Swap(layer, complied_mean.expand(len(refused), -1), chosen))
            for other in range(len(self.world.groups)):
                of_group = refused & (group == other)
                removed = 1 - float(still[of_group].float().mean())
                worst = max(worst, abs(removed - float(other == silenced)))
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
    n_groups, layers = len(world.groups), world.planted_layers
    single = torch.eye(n_groups, dtype=torch.bool)
    return Checks(
        behaviour=verifier.behaviour,
        interchange=min(verifier.interchange(layer, verifier.random) for layer in layers),
        single_slices=min(
            verifier.interchange(layer, single[group].expand(n_prompts, -1))
            for layer in layers
            for group in range(n_groups)
        ),
        necessity_error=max(verifier.necessity_error(layer) for layer in layers),
        outside=min(verifier.outside(layer) for layer in layers),
    )
