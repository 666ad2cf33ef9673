"""What complied prompts have at each place and kind of position: the reference that an ablation may leave.

One pass over complied prompts with the model's own answers; sums of the stream and of every writer go by kind of
position (text, each template token, answer) in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.models import SiteUse, TokenBatch
from refusal.steering.directional import Place, Reference
from refusal.steering.frame import Frame
from refusal.steering.run import Runs


@torch.no_grad()
def mean_reference(runs: Runs, token_ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Reference:
    """Return the mean activation at every place by kind of position, `[kind, d_model]`, float64 on the CPU.

    A kind that no prompt has (answers that end at once) gets the mean of the readout position.

    Args:
        runs: The model and its frame.
        token_ids: Complied prompts as `ChatModel.tokenize` gives them, at least one.
        answers: Their answers.
    """
    model, n_kinds = runs.model, runs.frame.n_template + 2
    places: tuple[Place, ...] = (None, *model.sites())
    sums = {place: torch.zeros(n_kinds, model.d_model, dtype=torch.float64) for place in places}
    counts = torch.zeros(n_kinds, dtype=torch.float64)
    whole = [[*ids, *answer] for ids, answer in zip(token_ids, answers, strict=True)]
    order = sorted(range(len(whole)), key=lambda row: (len(whole[row]), row))

    def run(rows: range) -> None:
        """Add one batch to the sums."""
        chosen = [order[row] for row in rows]
        tokens = model.pad([whole[row] for row in chosen])
        frame = Frame.of_texts(
            runs.frame.n_template, [len(token_ids[row]) for row in chosen], [len(whole[row]) for row in chosen]
        )
        is_of_kind = _is_of_kind(tokens, frame, n_kinds)
        with ExitStack() as stack:
            for place in places:
                use = _add_up(is_of_kind, sums[place])
                stack.enter_context(model.on_stream_start(use) if place is None else model.on_site(place, use))
            model.forward(tokens)
        counts.add_(is_of_kind.sum((0, 2)).double().cpu())

    runs.over([len(whole[row]) for row in order], run)
    return {place: _means(total, counts, runs.frame.readout) for place, total in sums.items()}


def _is_of_kind(tokens: TokenBatch, frame: Frame, n_kinds: int) -> Float[Tensor, "batch kind pos"]:
    """Return 1 where a token is of a kind, 0 elsewhere and for padding."""
    kinds = frame.kinds(tokens.input_ids[..., None].float())
    one_hot = torch.nn.functional.one_hot(kinds, n_kinds).float() * tokens.is_token[..., None]
    return one_hot.transpose(1, 2)


def _add_up(is_of_kind: Tensor, total: Float[Tensor, "kind d_model"]) -> SiteUse:
    """Return what adds a place's values to the sums of their kinds."""

    def use(value: Tensor) -> None:
        """Add the sums of each prompt, in float64; the pass goes on unchanged."""
        of_prompts = is_of_kind.to(value.device) @ value.float()
        total.add_(of_prompts.cpu().double().sum(0))

    return use


def _means(total: Tensor, counts: Tensor, readout: int) -> Tensor:
    means = total / counts.clamp_min(1)[:, None]
    means[counts == 0] = means[readout].clone()
    return means
