"""Run prompts under interventions: numbers from the first token's logits, and whole answers.

`measure` runs every prompt under every variant of an intervention (a direction, a coefficient); rows of one batch may
have different variants, so small batches are filled. An intervention at all positions changes keys and values of the
whole prompt, so nothing can be cached between variants; prompts of like length run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.capture import batch_size_for, capture, in_batches
from refusal.models import ChatModel
from refusal.steering.directional import DEFAULT_FRAME, Intervention, steered
from refusal.steering.frame import Frame

Vary = Callable[[Int[Tensor, " row"]], Intervention]
"""Makes the intervention of a batch from the number of the variant of each of its rows."""
Score = Callable[[Float[Tensor, "row vocab"], Int[Tensor, " row"]], Float[Tensor, "row score"]]
"""Numbers from the first-token logits (float32) of rows and the numbers of their prompts."""


@dataclass(frozen=True)
class Runs:
    """A model and how it is run."""

    model: ChatModel
    frame: Frame = DEFAULT_FRAME
    """Kinds of positions."""
    batch_size: str | int = "auto"
    """Rows of one pass; auto: as memory allows."""


@dataclass(frozen=True)
class Responses:
    """Greedy answers, in the order of the prompts."""

    token_ids: tuple[tuple[int, ...], ...]
    """Without the end-of-sequence token."""
    ended: tuple[bool, ...]
    """True where the answer ended with an end-of-sequence token."""

    def texts(self, model: ChatModel, prefix: Sequence[int] = ()) -> list[str]:
        """Return the answers as text, after the tokens that were moved from every answer into the prompt."""
        return [model.tokenizer.decode([*prefix, *ids], skip_special_tokens=True) for ids in self.token_ids]


@torch.no_grad()
def measure(
    runs: Runs,
    token_ids: Sequence[Sequence[int]],
    n_variants: int,
    vary: Vary,
    score: Score,
) -> Float[Tensor, "variant prompt score"]:
    """Return scores of every prompt under every variant, float64 on the CPU.

    Args:
        runs: The model and how it is run.
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        n_variants: How many variants there are.
        vary: Makes the intervention of a batch.
        score: Makes numbers of logits; the logits themselves are not kept.
    """
    order = sorted(range(len(token_ids)), key=lambda prompt: (len(token_ids[prompt]), prompt))
    prompts = torch.tensor(order, dtype=torch.long).repeat_interleave(n_variants)
    variants = torch.arange(n_variants).repeat(len(order))

    def run(rows: range) -> Tensor:
        """Return the scores of some rows."""
        chosen = slice(rows.start, rows.stop)
        with steered(runs.model, vary(variants[chosen]), frame=runs.frame):
            logits = readout_logits(runs.model, [token_ids[prompt] for prompt in prompts[chosen].tolist()])
        return score(logits, prompts[chosen]).double().cpu()

    parts, _ = in_batches(len(prompts), batch_size_for(token_ids, runs.batch_size), run)
    rows = torch.cat(parts)
    scores = torch.empty(n_variants, len(order), rows.shape[1], dtype=torch.float64)
    scores[variants, prompts] = rows
    return scores


@torch.no_grad()
def readout_logits(model: ChatModel, token_ids: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
    """Return the first-token logits of one batch of prompts, float32 on the model's device."""
    tokens = model.pad(token_ids)
    output = model.model(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        position_ids=tokens.position_ids,
        use_cache=False,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


def respond(
    runs: Runs, token_ids: Sequence[Sequence[int]], interventions: Sequence[Intervention], max_new_tokens: int
) -> Responses:
    """Return greedy answers under interventions that are the same for all prompts."""
    order = sorted(range(len(token_ids)), key=lambda prompt: (len(token_ids[prompt]), prompt))

    def run(rows: range) -> list[tuple[tuple[int, ...], bool]]:
        """Return the answers of some prompts."""
        batch = [token_ids[order[row]] for row in rows]
        with steered(runs.model, *interventions, frame=runs.frame):
            found = capture(runs.model, batch, [], max_new_tokens)
        return [(tuple(answer), ended) for answer, ended in zip(found.answers, found.ended, strict=True)]

    parts, _ = in_batches(len(order), batch_size_for(token_ids, runs.batch_size), run)
    by_prompt = dict(zip(order, (row for part in parts for row in part), strict=True))
    rows = [by_prompt[prompt] for prompt in range(len(order))]
    return Responses(tuple(answer for answer, _ in rows), tuple(ended for _, ended in rows))
