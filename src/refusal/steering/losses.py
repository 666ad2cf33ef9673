"""What an intervention costs on ordinary text: cross-entropy per token, and perplexity, its exponential.

Cross-entropy is over all scored tokens together (a long text counts more than a short one), as published; its interval
resamples texts. Source: Arditi et al. arXiv 2406.11717, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.stats import Estimate, bootstrap, bootstrap_weights
from refusal.steering.directional import Intervention, steered
from refusal.steering.frame import Frame
from refusal.steering.run import Runs

MAX_LOGITS = 2**28
"""Logits of one pass, at most (1 GiB in float32), unless one text alone has more."""


@dataclass(frozen=True)
class Text:
    """A text to score: the tokens of `scored` given those before; of `given` none is scored."""

    given: tuple[int, ...]
    """Tokens of the prompt in its chat frame; at least one."""
    scored: tuple[int, ...]
    """Tokens whose probability is asked for; at least one."""
    is_chat: bool = True
    """Whether `given` is a prompt in its chat frame; else all tokens count as answer when a region is asked for."""


@dataclass(frozen=True)
class Losses:
    """Summed negative log-likelihood and number of scored tokens of each text."""

    nats: Float[np.ndarray, " text"]
    n_tokens: Float[np.ndarray, " text"]

    def cross_entropy(self, seed: int, n_draws: int) -> Estimate:
        """Return nats per token over all texts, with its bootstrap interval over texts."""
        if not len(self.nats):
            return Estimate(None, None, None, 0, method="bootstrap over texts", reason="no texts")
        weights = bootstrap_weights(len(self.nats), n_draws, np.random.default_rng(seed))
        found = bootstrap(lambda w: (w @ self.nats) / (w @ self.n_tokens), weights)
        return replace(found, method="bootstrap over texts")


def perplexity(cross_entropy: Estimate) -> Estimate:
    """Return exp of a cross-entropy and of the ends of its interval; the exponential keeps their order."""
    value, low, high = (
        None if end is None else math.exp(end) for end in (cross_entropy.value, cross_entropy.low, cross_entropy.high)
    )
    return replace(cross_entropy, value=value, low=low, high=high)


@torch.no_grad()
def losses(runs: Runs, texts: Sequence[Text], interventions: Sequence[Intervention]) -> Losses:
    """Return the loss of each text under interventions."""
    whole = [[*text.given, *text.scored] for text in texts]
    order = sorted(range(len(texts)), key=lambda row: (len(whole[row]), row))

    def run(rows: range) -> Tensor:
        """Return the summed loss of some texts."""
        chosen = [order[row] for row in rows]
        tokens = runs.model.pad([whole[row] for row in chosen])
        frame = Frame.of_texts(
            runs.frame.n_template,
            [len(texts[row].given) if texts[row].is_chat else 0 for row in chosen],
            [len(whole[row]) for row in chosen],
        )
        n_kept = max(len(texts[row].scored) for row in chosen) + 1
        with steered(runs.model, *interventions, frame=frame):
            logits = runs.model.forward(tokens, logits_to_keep=n_kept).logits[:, -n_kept:-1]
        targets = tokens.input_ids[:, 1 - n_kept :]
        nats = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        lengths = torch.tensor([len(texts[row].scored) for row in chosen], device=nats.device)
        is_scored = torch.arange(n_kept - 2, -1, -1, device=nats.device)[None] < lengths[:, None]
        return torch.where(is_scored, nats, 0).double().sum(1).cpu()

    most = _rows_that_fit(texts, runs.model.vocab_size)
    parts = runs.over([len(whole[row]) for row in order], run, most=most)
    nats = np.empty(len(texts))
    nats[order] = torch.cat(parts).numpy() if parts else np.empty(0)
    return Losses(nats, np.array([len(text.scored) for text in texts], dtype=np.float64))


def _rows_that_fit(texts: Sequence[Text], vocab_size: int) -> int:
    """Return how many texts may be scored together: their logits, unlike those of one position, are large."""
    longest = max((len(text.scored) for text in texts), default=0) + 1
    return max(1, MAX_LOGITS // (longest * vocab_size))
