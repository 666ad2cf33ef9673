"""Run prompts under interventions: numbers from the first token's logits, and whole answers.

Every prompt runs under every variant of an intervention (a direction, a coefficient). Rows of one batch may have
different variants, so that small batches are filled. An intervention at all positions changes keys and values of the
whole prompt, so nothing can be cached between variants; prompts of like length run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.batch_memory import budget_for
from refusal.batches import Batcher
from refusal.capture import capture
from refusal.models import ChatModel
from refusal.steering.directional import DEFAULT_FRAME, Intervention, steered
from refusal.steering.frame import Frame

Result = TypeVar("Result")
Vary = Callable[[Int[Tensor, " row"], Int[Tensor, " row"]], Sequence[Intervention]]
"""Makes the interventions of a batch from the numbers of the variant and of the prompt of each of its rows."""
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

    def over(
        self,
        lengths: Sequence[int],
        run: Callable[[range], Result],
        *,
        max_new_tokens: int = 1,
        most: int | None = None,
    ) -> list[Result]:
        """Return the results of `run` over consecutive rows, as many at once as memory allows.

        Args:
            lengths: Tokens of each row; in order of length little is padded.
            run: Runs some rows.
            max_new_tokens: Longest answer.
            most: Rows of one pass, at most.

        Raises:
            InputError: Memory runs out with a single row.
        """
        budget = budget_for(self.model, self.batch_size, (), max_new_tokens)
        return Batcher(replace(budget, prompts=min(budget.prompts, most or budget.prompts))).run(lengths, run)


@dataclass(frozen=True)
class Response:
    """A greedy answer."""

    token_ids: tuple[int, ...]
    """Without the end-of-sequence token."""
    ended: bool
    """True where the answer ended with an end-of-sequence token."""

    def text(self, model: ChatModel, prefix: Sequence[int] = ()) -> str:
        """Return the answer as text, after the tokens that were moved from every answer into the prompt."""
        return str(model.tokenizer.decode([*prefix, *self.token_ids], skip_special_tokens=True))


def unchanged(variants: Int[Tensor, " row"], prompts: Int[Tensor, " row"]) -> Sequence[Intervention]:
    """Intervene nowhere: the one variant of a baseline."""
    return ()


def same(*interventions: Intervention) -> Vary:
    """Return the one variant in which all rows have the same interventions."""
    return lambda variants, prompts: interventions


@torch.no_grad()
def measure(
    runs: Runs, token_ids: Sequence[Sequence[int]], n_variants: int, vary: Vary, score: Score
) -> Float[Tensor, "variant prompt score"]:
    """Return scores of every prompt under every variant, float64 on the CPU.

    Args:
        runs: The model and how it is run.
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        n_variants: How many variants there are.
        vary: Makes the interventions of a batch.
        score: Makes numbers of logits; the logits themselves are not kept.
    """

    def run(prompts: list[int], variants: Int[Tensor, " row"]) -> list[Tensor]:
        """Return the scores of some rows."""
        with steered(runs.model, *vary(variants, torch.tensor(prompts)), frame=runs.frame):
            logits = readout_logits(runs.model, [token_ids[prompt] for prompt in prompts])
        return list(score(logits, torch.tensor(prompts)).cpu().double())

    by_variant = _over_rows(runs, token_ids, n_variants, run)
    return torch.stack([torch.stack(rows) for rows in by_variant])


@torch.no_grad()
def readout_logits(model: ChatModel, token_ids: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
    """Return the first-token logits of one batch of prompts, float32 on the model's device."""
    tokens = model.pad(token_ids)
    output = model.forward(tokens)
    logits: Tensor = output.logits[:, -1].float()
    return logits


def respond(
    runs: Runs, token_ids: Sequence[Sequence[int]], n_variants: int, vary: Vary, max_new_tokens: int
) -> list[list[Response]]:
    """Return greedy answers, `[variant][prompt]`, to every prompt under every variant."""

    def run(prompts: list[int], variants: Int[Tensor, " row"]) -> list[Response]:
        """Return the answers of some rows."""
        with steered(runs.model, *vary(variants, torch.tensor(prompts)), frame=runs.frame):
            batch = [token_ids[prompt] for prompt in prompts]
            found = capture(runs.model, batch, [], max_new_tokens, leave_at=0.0)
        return [Response(tuple(answer), ended) for answer, ended in zip(found.answers, found.ended, strict=True)]

    return _over_rows(runs, token_ids, n_variants, run, max_new_tokens)


def _over_rows(
    runs: Runs,
    token_ids: Sequence[Sequence[int]],
    n_variants: int,
    run: Callable[[list[int], Int[Tensor, " row"]], list[Result]],
    max_new_tokens: int = 1,
) -> list[list[Result]]:
    """Return the result of every prompt under every variant, `[variant][prompt]`, running prompts by length."""
    order = sorted(range(len(token_ids)), key=lambda prompt: (len(token_ids[prompt]), prompt))
    pairs = [(prompt, variant) for prompt in order for variant in range(n_variants)]

    def run_rows(rows: range) -> list[Result]:
        """Run one batch."""
        chosen = pairs[rows.start : rows.stop]
        return run([prompt for prompt, _ in chosen], torch.tensor([variant for _, variant in chosen]))

    lengths = [len(token_ids[prompt]) for prompt, _ in pairs]
    parts = runs.over(lengths, run_rows, max_new_tokens=max_new_tokens)
    found = dict(zip(pairs, (result for part in parts for result in part), strict=True))
    return [[found[prompt, variant] for prompt in range(len(order))] for variant in range(n_variants)]
