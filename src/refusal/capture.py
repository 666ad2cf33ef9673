"""The one pass over a batch of prompts: activations, first-token logits and the greedy answer.

1. The prompts, left padded, run once; hooks keep the readout position (last prompt token) of the asked sites and, where
   it is asked for, the positions before it.
2. The same pass gives the first-token logits.
3. The answer goes on from the pass's key-value cache, greedily, until an end-of-sequence token or `max_new_tokens`.

No second pass, and nothing of the answer reaches the recorded activations. This module does not know prompts' labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from refusal.errors import InputError
from refusal.interventions import Selection, record_rows
from refusal.models import ChatModel, TokenBatch
from refusal.positions import Positions
from refusal.sites import Site
from refusal.store import TopLogits


@dataclass(frozen=True)
class Capture:
    """A batch's results; rows follow the prompts as given."""

    readout: dict[Site, Float[Tensor, "prompt d_model"]]
    """On the CPU, in the model's dtype."""
    first_token: TopLogits
    answers: list[list[int]]
    """Token ids of the answers, without the end-of-sequence token."""
    ended: list[bool]
    """True where the answer ended with an end-of-sequence token."""
    positions: Positions | None = None
    """The positions before the readout position, where they were asked for."""


@torch.no_grad()
def capture(
    model: ChatModel,
    token_ids: Sequence[Sequence[int]],
    sites: Sequence[Site],
    max_new_tokens: int,
    first_position: int | None = None,
) -> Capture:
    """Run a batch of prompts once.

    Args:
        model: The model.
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        sites: Sites to keep.
        max_new_tokens: Longest answer, at least 1.
        first_position: Keep the positions from this one to the readout position too; None: the readout position only.
    """
    tokens = model.pad(token_ids)
    cache = DynamicCache(config=model.model.config)
    is_kept = _kept(tokens, first_position)
    with record_rows(model, sites, _selection(is_kept, first_position is None)) as recording:
        output = model.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits = output.logits[:, -1]
    prompt, column = is_kept.nonzero().cpu().unbind(1)
    is_readout = column == is_kept.shape[1] - 1
    rows = {site: kept.cpu() for site, kept in recording.items()}
    readout = {site: kept[is_readout] for site, kept in rows.items()}
    positions = None
    if first_position is not None:
        token = tokens.position_ids.cpu()[prompt, column]
        before = {site: kept[~is_readout] for site, kept in rows.items()}
        positions = Positions(before, prompt[~is_readout], token[~is_readout])
    answers, ended = _continue(model, tokens.attention_mask, cache, logits, max_new_tokens)
    return Capture(readout, TopLogits.of(logits), answers, ended, positions)


def _kept(tokens: TokenBatch, first_position: int | None) -> Bool[Tensor, "batch pos"]:
    """Return where rows are kept: the last column, and the tokens of the prompt from a position on."""
    is_kept = torch.zeros_like(tokens.is_token)
    if first_position is not None:
        is_kept = tokens.is_token & (tokens.position_ids >= first_position)
    is_kept[:, -1] = True
    return is_kept


def _selection(is_kept: Bool[Tensor, "batch pos"], is_readout_only: bool) -> Selection:
    """Return what copies the kept rows of a site's value, by prompt, then by position."""
    if is_readout_only:
        return lambda value: value[:, -1].clone()
    places = is_kept.flatten().nonzero()[:, 0]
    # rows leave the device as they come: those of all sites together need not fit it
    return lambda value: value.flatten(0, 1)[places.to(value.device)].cpu()


def _continue(
    model: ChatModel,
    mask: Int[Tensor, "batch pos"],
    cache: DynamicCache,
    logits: Float[Tensor, "batch vocab"],
    max_new_tokens: int,
) -> tuple[list[list[int]], list[bool]]:
    """Return greedy answers and whether each ended, going on from the prompt's cache."""
    stops = torch.tensor(sorted(model.eos_token_ids), device=logits.device, dtype=torch.long)
    position = mask.sum(-1, keepdim=True)
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    steps: list[Tensor] = []
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        ended |= torch.isin(token, stops)
        # an ended answer runs on with the others; -1 marks what no longer belongs to it
        steps.append(torch.where(ended, -1, token))
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        output = model.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, position = output.logits[:, -1], position + 1
    rows = torch.stack(steps, dim=1).tolist()
    return [[token for token in row if token >= 0] for row in rows], ended.tolist()


def check_finite(found: Capture, prompt_ids: Sequence[str], model: ChatModel) -> None:
    """Raise if an activation or a first-token logit is NaN or infinite.

    Raises:
        InputError: Names the model, the first such site and its prompts, and what to do.
    """
    is_finite = {str(site): torch.isfinite(acts).all(-1) for site, acts in sorted(found.readout.items())}
    if found.positions is not None:
        for site, acts in found.positions.acts.items():
            is_finite[str(site)][found.positions.prompt[~torch.isfinite(acts).all(-1)]] = False
    is_finite["the logits"] = torch.isfinite(found.first_token.logsumexp)
    for place, finite in is_finite.items():
        ids = [prompt_id for prompt_id, fine in zip(prompt_ids, finite.tolist(), strict=True) if not fine]
        if ids:
            raise InputError(
                f"models: {model.name}: activations of {len(ids)} prompts at {place} are not finite (e.g. {ids[0]}) in "
                f"{str(model.dtype).removeprefix('torch.')}; set dtype: float32, or check the model's weights. "
                "What was captured before stays."
            )
