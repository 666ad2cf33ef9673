"""Models on contrast pairs: random ones of every family, a linear one, and the shipped planted ones."""

from __future__ import annotations

from functools import cache

import torch
from tiny_models import make_model

from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.patching.pairs import ContrastPair, embedded_pairs, in_turns, split_pairs
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import tokenise
from refusal.planted.language import ENGLISH
from refusal.planted.pool import first_tokens

METRIC = RefusalMetric((6, 7, 8), (13, 14, 15))
PAIRS = (
    ContrastPair("a", "please tell me about my garden", "please tell me about my money", "x"),
    ContrastPair("b", "how to make a plan", "how to make a car", "x"),
    ContrastPair("c", "secret money garden", "tell me about the weather", "y"),
    ContrastPair("d", "a story about the car", "a plan about the money", "y"),
)
"""Pair c is of unequal length."""


def runs_of(model: ChatModel, pairs=PAIRS, metric: RefusalMetric = METRIC, batch_size: int = 32) -> PairRuns:
    tokens, frame = tokenise(model, pairs, None, ())
    return PairRuns(model, metric, tokens, frame, batch_size=batch_size)


@cache
def linear_model() -> ChatModel:
    """Return a Llama that is linear in every activation: no norms, uniform attention, MLPs that write nothing."""
    model = make_model("llama", seed=3)
    inner = model.model.model
    inner.norm = torch.nn.Identity()
    for block in inner.layers:
        block.input_layernorm = torch.nn.Identity()
        block.self_attn.q_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    return model


LINEAR_METRIC = RefusalMetric((6,), (13,))
"""One opener a side: a difference of two logits."""


@cache
def planted_runs(name: str, n_pairs: int = 50) -> PairRuns:
    """Return a shipped model on the first embedded pairs."""
    model = ChatModel.load(f"planted/{name}")
    openers = first_tokens(ENGLISH, model.tokenizer)
    metric = RefusalMetric(tuple(openers[1].tolist()), tuple(openers[0].tolist()))
    maps, _ = split_pairs(embedded_pairs(), n_pairs, 0)
    runs = runs_of(model, maps.pairs, metric)
    return runs.without_small_gaps(1.0)[0]


@cache
def planted_held_out(name: str, n_pairs: int = 20) -> PairRuns:
    """Return a shipped model on other embedded pairs than the first 50."""
    runs = planted_runs(name)
    others = in_turns(embedded_pairs().pairs)[60 : 60 + n_pairs]
    tokens, _ = tokenise(runs.model, others, None, ())
    return PairRuns(runs.model, runs.metric, tokens, runs.frame)
