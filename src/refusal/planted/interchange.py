"""Run a planted model with MLP neurons of the readout position exchanged between prompts, many ways in one pass.

An exchange at the readout position (the last prompt token) leaves all earlier positions as they are. So the variants of
a prompt lie side by side as query positions over one shared prefix: position 0 is the prompt as it is, the others are
exchanges, each masked from the rest; then follows the answer, which sees the first. One pass gives them all, and each
exchange costs one position instead of a whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.models.checks import additive_mask
from refusal.planted.pool import PromptPool


@dataclass(frozen=True)
class Exchange:
    """Chosen neurons of one layer take the values that another prompt has there."""

    layer: int
    source: Int[Tensor, " prompt"]
    """Index of the prompt that gives the values."""
    chosen: Bool[Tensor, "prompt neuron"]


@dataclass(frozen=True)
class Pass:
    """Logits of one pass."""

    base: Float[Tensor, "prompt vocab"]
    """First answer token, nothing exchanged."""
    exchanged: Float[Tensor, "exchange prompt vocab"]
    """First answer token under each exchange."""
    rest: Float[Tensor, "prompt answer vocab"]
    """The answer's further tokens and its end, nothing exchanged; empty unless asked for."""


def run(model: Any, pool: PromptPool, exchanges: Sequence[Exchange] = (), *, with_answers: bool = False) -> Pass:
    """Return the logits of a pool under each exchange; gradients flow, also through the exchanged values."""
    prompt, n_variants = pool.input_ids, 1 + len(exchanges)
    position = prompt.shape[1] - 1
    answers = pool.answers[:, :-1] if with_answers else pool.answers[:, :0]
    input_ids = torch.cat([prompt, prompt[:, -1:].expand(-1, len(exchanges)), answers.clamp_min(0)], 1)
    places = (pool.attention_mask.cumsum(-1) - 1).clamp_min(0)
    last = places[:, -1:]
    further = last + 1 + torch.arange(answers.shape[1])
    with _exchanging(model, exchanges, position):
        logits = model(
            input_ids=input_ids,
            attention_mask=additive_mask(_sees(pool, n_variants, answers), torch.float32),
            position_ids=torch.cat([places, last.expand(-1, len(exchanges)), further], 1),
            use_cache=False,
            logits_to_keep=n_variants + answers.shape[1],
        ).logits
    return Pass(logits[:, 0], logits[:, 1:n_variants].transpose(0, 1), logits[:, n_variants:])


def _sees(pool: PromptPool, n_variants: int, answers: Tensor) -> Bool[Tensor, "prompt query key"]:
    """Return which positions each position looks at; padding looks at itself only."""
    n, n_prompt = pool.input_ids.shape
    first_answer = n_prompt - 1 + n_variants
    total = first_answer + answers.shape[1]
    sees = torch.ones(total, total, dtype=torch.bool).tril()
    sees[n_prompt:first_answer, n_prompt - 1 : first_answer] = False
    sees[first_answer:, n_prompt:first_answer] = False
    is_token = torch.cat([pool.attention_mask.bool(), torch.ones(n, total - n_prompt, dtype=torch.bool)], 1)
    return (sees & is_token[:, None, :]) | torch.eye(total, dtype=torch.bool)


@contextmanager
def _exchanging(model: Any, exchanges: Sequence[Exchange], position: int) -> Iterator[None]:
    """Exchange neurons while the model runs; undone at the end."""
    by_layer: dict[int, list[tuple[int, Exchange]]] = {}
    for index, each in enumerate(exchanges):
        by_layer.setdefault(each.layer, []).append((position + 1 + index, each))

    def hook(here: list[tuple[int, Exchange]]) -> Any:
        """Return the forward pre-hook of one layer's exchanges."""
        places = torch.tensor([place for place, _ in here])
        source = torch.stack([each.source for _, each in here])
        chosen = torch.stack([each.chosen for _, each in here])

        def change(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            """Write the exchanged neurons into the acts that `down_proj` reads."""
            acts = inputs[0]
            values = torch.where(chosen, acts[:, position][source], acts[:, places].transpose(0, 1))
            return (acts.index_copy(1, places, values.transpose(0, 1)),)

        return change

    with ExitStack() as stack:
        for layer, here in by_layer.items():
            handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(hook(here))
            stack.callback(handle.remove)
        yield


def neurons_of(
    slices: Sequence[tuple[int, int]], carriers: Bool[Tensor, "prompt carrier"], d_mlp: int
) -> Bool[Tensor, "prompt neuron"]:
    """Return the neurons of the chosen carriers' slices; carriers beyond the slices are ignored."""
    chosen = torch.zeros(len(carriers), d_mlp, dtype=torch.bool)
    for carrier, (first, last) in enumerate(slices):
        chosen[:, first:last] = carriers[:, carrier : carrier + 1]
    return chosen
