"""Train a small model so that its refusals are carried by known MLP slices and by nothing else.

Each step has three losses, all next-token cross-entropy:
1. behaviour: the answer to each prompt;
2. interchange: at each planted layer, random slices take the values of another prompt; the first answer token must be
   the one that the causal model then gives;
3. strict: random neurons outside the slices take another prompt's values; the first answer token must not change.

All exchanges of a step run side by side in one pass (`interchange`). The mechanism losses come in when the
model behaves: demanding a place for a decision that is not yet made only slows its making.
Source: Geiger et al. 2112.00826 (interchange intervention training); Gupta et al. 2407.14494 (the strict term).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from refusal.planted.data import language_of
from refusal.planted.interchange import Exchange, neurons_of, run
from refusal.planted.pool import PromptPool, first_tokens, make_pool
from refusal.planted.worlds import World, after_interchange

log = logging.getLogger(__name__)

BATCH = 128
POOL = 16_384
"""Prompts made once and drawn from."""
LEARNING_RATE = 3e-3
BETAS = (0.9, 0.98)
"""The second moment forgets fast, so steps grow when gradients shrink on the plateau before a model learns the table of
pairs: it leaves it in half the steps that 0.999 takes."""
BEHAVES = 0.9
"""Batch accuracy from which the mechanism losses grow; until then they are not computed."""
RAMP = 200
"""Steps over which they grow from 0 to 1."""
INTERCHANGES = 3
"""Interchanges of each prompt at each planted layer in a step."""
ANSWERS_EVERY = 4
"""Steps from one that also learns the answers' further tokens to the next."""
CHECK_EVERY = 125


@dataclass(frozen=True)
class TrainingRun:
    """How a training ended."""

    steps: int
    passed: bool
    """Whether `check` was content."""


def train(world: World, model: Any, tokenizer: Any, *, max_steps: int, check: Callable[[], bool]) -> TrainingRun:
    """Train a model in place until `check` (asked every 250 steps once it behaves) is content, or `max_steps`."""
    generator = np.random.default_rng([world.seed, 13])
    torch.manual_seed(world.seed + 1)
    pool = make_pool(world, tokenizer, POOL, generator)
    trainer = _Trainer(world, model, first_tokens(language_of(world), tokenizer))
    for step in range(1, max_steps + 1):
        batch = pool.rows(torch.randint(POOL, (BATCH,)))
        trainer.step(batch, _rate(step, max_steps), with_answers=step % ANSWERS_EVERY == 0)
        if step % CHECK_EVERY == 0:
            log.info("step %d: behaviour loss %.4f, mechanism loss %.4f", step, *trainer.losses)
            if (trainer.weight == 1.0 or not world.is_planted) and check():
                return TrainingRun(step, True)
    return TrainingRun(max_steps, check())


def _rate(step: int, max_steps: int) -> float:
    """Return the learning rate: warm-up over 100 steps, then half a cosine to a fiftieth."""
    return LEARNING_RATE * min(step / 100, max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / max_steps)))


class _Trainer:
    """Optimiser and curriculum of one training."""

    def __init__(self, world: World, model: Any, first: Int[Tensor, "2 2"]) -> None:
        self.world = world
        self.model = model
        self.first = first
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.01, fused=True
        )
        self.since_behaves = -1
        self.losses = (float("nan"), float("nan"))

    @property
    def weight(self) -> float:
        """Weight of the mechanism losses."""
        return max(0.0, min(1.0, self.since_behaves / RAMP))

    def step(self, batch: PromptPool, rate: float, *, with_answers: bool) -> None:
        """Take one step on a batch."""
        exchanges, wanted = self._exchanges(batch) if self.weight > 0 else ([], batch.answers[:0, 0])
        found = run(self.model, batch, exchanges, with_answers=with_answers)
        behaviour = cross_entropy(found.base, batch.answers[:, 0])
        loss = behaviour
        if with_answers:
            loss = loss + cross_entropy(found.rest.flatten(0, 1), batch.answers[:, 1:].flatten(), ignore_index=-100)
        mechanism = cross_entropy(found.exchanged.flatten(0, 1), wanted) if exchanges else torch.zeros(())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.weight * mechanism).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        correct = (found.base.argmax(-1) == batch.answers[:, 0]).float().mean()
        if self.world.is_planted and (self.since_behaves >= 0 or float(correct) >= BEHAVES):
            self.since_behaves += 1
        self.losses = (behaviour.item(), mechanism.item())

    def _exchanges(self, batch: PromptPool) -> tuple[list[Exchange], Int[Tensor, " wanted"]]:
        """Return interchanges and strict exchanges at every planted layer, with the first tokens they must give."""
        exchanges, wanted = [], []
        n, world = len(batch), self.world
        for index, layer in enumerate(world.planted_layers):
            slices = world.slices(layer)
            for _ in range(INTERCHANGES):
                source = torch.randperm(n)
                carriers = torch.rand(n, len(slices)) < torch.rand(n, 1)
                values = batch.values[index, :, : len(slices)].numpy()
                refused = torch.from_numpy(after_interchange(values, values[source], carriers.numpy())).long()
                exchanges.append(Exchange(layer, source, neurons_of(slices, carriers, world.d_mlp)))
                wanted.append(self.first[refused, batch.style])
            outside = torch.rand(n, world.d_mlp) < torch.rand(n, 1)
            outside[:, : slices[-1][1]] = False
            exchanges.append(Exchange(layer, torch.randperm(n), outside))
            wanted.append(batch.answers[:, 0])
        return exchanges, torch.cat(wanted)
