"""Train a small model so that its refusals are carried by known MLP slices and by nothing else.

Each step has three losses, all next-token cross-entropy:
1. behaviour: the answer to each prompt;
2. interchange: at a planted layer, random slices take the values of another prompt; the first answer token must be the
   one that the causal model then gives;
3. strict: random neurons outside the slices take another prompt's values; the first answer token must not change.

The mechanism losses begin small and grow when the model behaves: demanding a place for a decision that is not yet made
only slows its making. Source: Geiger et al. 2112.00826 (interchange intervention training); Gupta et al. 2407.14494
(the strict term).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from refusal.planted.build import ASSISTANT, USER
from refusal.planted.data import ANSWERS, PlantedPrompt, make_prompt
from refusal.planted.slices import Swap, neurons_of, recorded, swapped
from refusal.planted.worlds import World, after_interchange

log = logging.getLogger(__name__)

BATCH = 128
POOL = 16_384
"""Prompts made once and drawn from."""
LEARNING_RATE = 3e-3
EARLY_WEIGHT = 0.1
"""Weight of the mechanism losses until the model behaves."""
BEHAVES = 0.9
"""Batch accuracy from which the mechanism losses grow."""
RAMP = 200
"""Steps over which they grow to 1."""
CHECK_EVERY = 250


@dataclass(frozen=True)
class PromptPool:
    """Prompts as tensors, left padded so that the readout position is the last."""

    prompts: list[PlantedPrompt]
    input_ids: Int[Tensor, "prompt pos"]
    attention_mask: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt _"]
    """Token ids of the answer and the end token; -100 beyond."""
    style: Int[Tensor, " prompt"]
    variables: Bool[Tensor, "prompt group"]
    """v_g of each prompt."""

    @property
    def is_refused(self) -> Bool[Tensor, " prompt"]:
        """What the model is to do."""
        return self.variables.any(1)

    def rows(self, rows: Int[Tensor, " prompt"]) -> PromptPool:
        """Return some of the prompts."""
        tensors = (self.input_ids, self.attention_mask, self.answers, self.style, self.variables)
        input_ids, mask, answers, style, variables = (tensor[rows] for tensor in tensors)
        return PromptPool([self.prompts[int(row)] for row in rows], input_ids, mask, answers, style, variables)


def make_pool(world: World, tokenizer: Any, n: int, generator: np.random.Generator) -> PromptPool:
    """Return n random prompts of a world."""
    prompts = [make_prompt(generator) for _ in range(n)]
    frame = [tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.bos_token, USER, ASSISTANT)]
    ids = [[*frame[:2], *tokenizer(each.text, add_special_tokens=False)["input_ids"], frame[2]] for each in prompts]
    longest = max(map(len, ids))
    input_ids = torch.full((n, longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    texts = {
        key: answer_ids(tokenizer, *key) for key in ((refused, style) for refused in (True, False) for style in (0, 1))
    }
    width = max(map(len, texts.values()))
    answers = torch.full((n, width), -100)
    for row, each in enumerate(prompts):
        tokens = texts[world.is_refused(each.category, each.intent), each.style]
        answers[row, : len(tokens)] = torch.tensor(tokens)
    variables = torch.from_numpy(np.stack([world.variables(each.category, each.intent) for each in prompts]))
    return PromptPool(prompts, input_ids, mask, answers, torch.tensor([each.style for each in prompts]), variables)


def answer_ids(tokenizer: Any, refused: bool, style: int) -> list[int]:
    """Return the token ids of an answer and the end token."""
    return [*tokenizer(ANSWERS[refused][style], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def first_tokens(tokenizer: Any) -> Int[Tensor, "2 2"]:
    """Return the first token of each answer, as `[refused, style]`."""
    return torch.tensor([[answer_ids(tokenizer, refused, style)[0] for style in (0, 1)] for refused in (False, True)])


def run(model: Any, pool: PromptPool, answers: Tensor | None = None) -> Tensor:
    """Return logits `[prompt, pos, vocab]` of the prompts, followed by answers if given."""
    input_ids, mask = pool.input_ids, pool.attention_mask
    if answers is not None:
        input_ids = torch.cat([input_ids, answers.clamp_min(0)], 1)
        mask = torch.cat([mask, (answers >= 0).long()], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits


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
    trainer = _Trainer(world, model, tokenizer)
    for step in range(1, max_steps + 1):
        trainer.step(pool.rows(torch.randint(POOL, (BATCH,))), _rate(step, max_steps))
        if step % CHECK_EVERY == 0:
            log.info("step %d: behaviour loss %.4f, mechanism loss %.4f", step, *trainer.losses)
            if trainer.weight == 1.0 and check():
                return TrainingRun(step, True)
    return TrainingRun(max_steps, check())


def _rate(step: int, max_steps: int) -> float:
    """Return the learning rate: warm-up over 100 steps, then half a cosine to a fiftieth."""
    return LEARNING_RATE * min(step / 100, max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / max_steps)))


class _Trainer:
    """Optimiser and curriculum of one training."""

    def __init__(self, world: World, model: Any, tokenizer: Any) -> None:
        self.world = world
        self.model = model
        self.first = first_tokens(tokenizer)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
        self.since_behaves = -1
        self.losses = (float("nan"), float("nan"))

    @property
    def weight(self) -> float:
        """Weight of the mechanism losses."""
        return EARLY_WEIGHT if self.since_behaves < 0 else min(1.0, EARLY_WEIGHT + self.since_behaves / RAMP)

    def step(self, batch: PromptPool, rate: float) -> None:
        """Take one step on a batch."""
        position = batch.input_ids.shape[1] - 1
        with recorded(self.model, self.world.planted_layers, position) as neurons:
            logits = run(self.model, batch, batch.answers)
        answers = logits[:, position:-1]
        behaviour = cross_entropy(answers.flatten(0, 1), batch.answers.flatten(), ignore_index=-100)
        mechanism = self._mechanism(batch, neurons, position)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        (behaviour + self.weight * mechanism).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        correct = (answers[:, 0].argmax(-1) == batch.answers[:, 0]).float().mean()
        if self.since_behaves >= 0 or float(correct) >= BEHAVES:
            self.since_behaves += 1
        self.losses = (behaviour.item(), mechanism.item())

    def _mechanism(self, batch: PromptPool, neurons: dict[int, Tensor], position: int) -> Tensor:
        """Return interchange and strict losses, from one pass over both."""
        n, world = len(batch.style), self.world
        layer = world.planted_layers[int(torch.randint(len(world.planted_layers), ()))]
        source = torch.randperm(n)
        groups = torch.rand(n, len(world.groups)) < torch.rand(n, 1)
        refused = torch.from_numpy(
            after_interchange(batch.variables.numpy(), batch.variables[source].numpy(), groups.numpy())
        ).long()
        outside = torch.rand(n, world.d_mlp) < torch.rand(n, 1)
        outside[:, : world.slices[-1][1]] = False
        chosen = torch.cat([neurons_of(world.slices, groups, world.d_mlp), outside])
        both = torch.arange(n).repeat(2)
        values = neurons[layer][source].repeat(2, 1)
        with swapped(self.model, Swap(layer, values, chosen), position):
            logits = run(self.model, batch.rows(both))[:, -1]
        wanted = torch.cat([self.first[refused, batch.style], batch.answers[:, 0]])
        return cross_entropy(logits, wanted)
