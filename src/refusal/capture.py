"""The one pass over a batch of prompts: activations, first-token logits and the greedy answer.

1. The prompts, left padded, run once; hooks keep the readout position (last prompt token) of the asked sites and, where
   they are asked for, other positions and means over positions.
2. The same pass gives the first-token logits.
3. The answer goes on from the pass's key-value cache, greedily, until an end-of-sequence token or `max_new_tokens`.

No second pass, and nothing of the answer reaches the recorded activations. This module does not know prompts' labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from refusal.errors import InputError
from refusal.interventions import record_rows
from refusal.models import ChatModel, TokenBatch
from refusal.positions import READOUT_ONLY, At, Keep, Positions
from refusal.sites import Site
from refusal.store import TopLogits

LEAVE_AT = 0.5
"""Share of a batch's answers still going on at which the ended ones leave it."""
_ENDED = -1
"""Stands for what no longer belongs to an answer."""


@dataclass(frozen=True)
class Capture:
    """A batch's results; rows follow the prompts as given."""

    readout: dict[Site, Float[Tensor, "prompt width"]]
    """On the CPU, in the model's dtype."""
    first_token: TopLogits
    answers: list[list[int]]
    """Token ids of the answers, without the end-of-sequence token."""
    ended: list[bool]
    """True where the answer ended with an end-of-sequence token."""
    positions: Positions | None = None
    """The positions before the readout position, where they were asked for."""
    elsewhere: dict[At, dict[Site, Float[Tensor, "prompt width"]]] = field(default_factory=dict)
    """The offsets and means that were asked for."""


@torch.no_grad()
def capture(
    model: ChatModel,
    token_ids: Sequence[Sequence[int]],
    sites: Sequence[Site],
    max_new_tokens: int,
    keep: Keep = READOUT_ONLY,
    *,
    leave_at: float = LEAVE_AT,
) -> Capture:
    """Run a batch of prompts once.

    Args:
        model: The model.
        token_ids: Prompts as `ChatModel.tokenize` gives them.
        sites: Sites to keep.
        max_new_tokens: Longest answer, at least 1.
        keep: What to keep besides the readout position; every prompt reaches back as far as its offsets.
        leave_at: Share of the answers still going on at which the ended ones leave the batch; 0: they stay to the end,
            for interventions that know a row by its place.
    """
    tokens = model.pad(token_ids)
    cache = DynamicCache(config=model.model.config) if max_new_tokens > 1 else None
    select = Selector(tokens, keep)
    with record_rows(model, sites, select) as recording:
        output = model.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
    logits = output.logits[:, -1]
    one_each = {site: kept.one_each.cpu() for site, kept in recording.items()}
    columns: tuple[At, ...] = ("readout", *keep.elsewhere)
    by_place = {at: {site: one_each[site][:, column] for site in one_each} for column, at in enumerate(columns)}
    positions = None
    if keep.others:
        before = {site: kept.others for site, kept in recording.items() if kept.others is not None}
        positions = Positions(before, select.prompt, select.token)
    answers, ended = _continue(model, tokens.attention_mask, cache, logits, max_new_tokens, leave_at)
    return Capture(by_place.pop("readout"), TopLogits.of(logits), answers, ended, positions, by_place)


@dataclass(frozen=True)
class _Kept:
    """What is kept of one site's value."""

    one_each: Float[Tensor, "prompt place width"]
    """The readout position, the offsets, the mean."""
    others: Float[Tensor, "row width"] | None
    """The own positions before the readout position, by prompt, then by position."""


class Selector:
    """Copies what is kept of a site's value; the same for every site of a batch."""

    def __init__(self, tokens: TokenBatch, keep: Keep) -> None:
        self._keep = keep
        self._columns = [-1, *keep.offsets]  # prompts are padded on the left: a place from the end is one column
        own = tokens.is_token & (tokens.position_ids >= keep.first)
        own[:, -1] = True
        self._own = own
        before = own.clone()
        before[:, -1] = False
        self._places = before.flatten().nonzero()[:, 0]
        prompt, column = before.nonzero().cpu().unbind(1)
        self.prompt = prompt
        """Number of the prompt of each of the other positions."""
        self.token = tokens.position_ids.cpu()[prompt, column]
        """Position of each of them within its prompt."""

    def __call__(self, value: Float[Tensor, "batch pos width"]) -> _Kept:
        """Return a copy of what is kept."""
        one_each = value[:, self._columns] if self._keep.offsets else value[:, -1:].clone()
        if self._keep.mean:
            own = self._own.to(value.device)[..., None]
            # padding may hold values that are not finite: zeros would not take them out of a product
            mean = value.float().masked_fill(~own, 0.0).sum(1, keepdim=True) / own.sum(1, keepdim=True)
            one_each = torch.cat([one_each, mean.to(one_each)], dim=1)
        # rows leave the device as they come: those of all sites together need not fit it
        others = value.flatten(0, 1)[self._places.to(value.device)].cpu() if self._keep.others else None
        return _Kept(one_each, others)


def _continue(
    model: ChatModel,
    mask: Int[Tensor, "batch pos"],
    cache: DynamicCache | None,
    logits: Float[Tensor, "batch vocab"],
    max_new_tokens: int,
    leave_at: float,
) -> tuple[list[list[int]], list[bool]]:
    """Return greedy answers and whether each ended, going on from the prompt's cache.

    Ended answers run on with the others until they are as many as those; then they leave the batch.
    """
    stops = torch.tensor(sorted(model.eos_token_ids), device=logits.device, dtype=torch.long)
    position = mask.sum(-1, keepdim=True)
    rows = torch.arange(len(mask), device=mask.device)
    answers = torch.full((len(mask), max_new_tokens), _ENDED, device=mask.device)
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        ended[rows] |= torch.isin(token, stops)
        answers[rows, step] = token.masked_fill(ended[rows], _ENDED)
        if step + 1 == max_new_tokens:
            break
        goes_on = (~ended[rows]).nonzero()[:, 0]
        if not len(goes_on):
            break
        if len(goes_on) <= leave_at * len(rows) and cache is not None:
            rows, token, mask, position = rows[goes_on], token[goes_on], mask[goes_on], position[goes_on]
            cache.reorder_cache(goes_on)
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
    return [[token for token in row if token != _ENDED] for row in answers.tolist()], ended.tolist()


def check_finite(found: Capture, prompt_ids: Sequence[str], model: ChatModel) -> None:
    """Raise if an activation or a first-token logit is NaN or infinite.

    Raises:
        InputError: Names the model, the first such site and its prompts, and what to do.
    """
    is_finite = {str(site): torch.isfinite(acts).all(-1) for site, acts in sorted(found.readout.items())}
    if found.positions is not None:
        for site, acts in found.positions.acts.items():
            is_finite[str(site)][found.positions.prompt[~torch.isfinite(acts).all(-1)]] = False
    for at, by_site in found.elsewhere.items():
        is_finite |= {f"{site} ({at})": torch.isfinite(acts).all(-1) for site, acts in sorted(by_site.items())}
    is_finite["the logits"] = torch.isfinite(found.first_token.logsumexp)
    for place, finite in is_finite.items():
        ids = [prompt_id for prompt_id, fine in zip(prompt_ids, finite.tolist(), strict=True) if not fine]
        if ids:
            raise InputError(
                f"models: {model.name}: activations of {len(ids)} prompts at {place} are not finite (e.g. {ids[0]}) in "
                f"{str(model.dtype).removeprefix('torch.')}; set dtype: float32, or check the model's weights. "
                "What was captured before stays."
            )
