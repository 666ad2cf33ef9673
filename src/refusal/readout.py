"""Run a model again at the readout position only, with everything before it cached.

An intervention at the readout position (the last prompt token) leaves the keys and values of earlier positions as they
are. So the prefix of a batch of prompts runs once, and each variant (an ablation, a point of an integration path) costs
one token per prompt instead of the whole prompt. Two layouts of the variants give the same result:

- side by side: the variants of a prompt are query positions over one shared prefix, each masked from the others.
  Nothing is copied, which makes it 3 to 6 times faster (benchmarks/readout.py); it needs attention that obeys a mask
  per query, and no sliding window shorter than the prompts;
- as rows: one row per variant and prompt, each with a copy of the prefix. Works for every model.

The result equals the full forward pass up to rounding; gradients flow through edits, not into the prefix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from refusal.interventions import Transform, edit
from refusal.interventions import record as record_sites
from refusal.models import ChatModel, TokenBatch
from refusal.models.checks import additive_mask
from refusal.sites import Site

ReadoutTransform = Callable[[Float[Tensor, "variant batch d_model"]], Float[Tensor, "variant batch d_model"]]
"""What an edit does to a site's value at the readout position, all variants at once."""


@dataclass(frozen=True)
class Edit:
    """A change of one site at the readout position."""

    site: Site
    apply: ReadoutTransform


@dataclass(frozen=True)
class Readout:
    """What a run gives."""

    logits: Float[Tensor, "variant batch vocab"]
    """Logits of the first answer token."""
    acts: dict[Site, Float[Tensor, "variant batch d_model"]]
    """Recorded sites, after the edits."""


class ReadoutRunner:
    """Prompts of a model, ready to be run again at their readout position.

    Args:
        model: The model.
        token_ids: Prompts as `ChatModel.tokenize` gives them; a prompt is named by its index.
        batch_size: Prompts whose prefix is cached together.
        row_budget: Variants x prompts of one forward pass, at most.
    """

    def __init__(
        self, model: ChatModel, token_ids: Sequence[Sequence[int]], *, batch_size: int = 64, row_budget: int = 1024
    ) -> None:
        self.model = model
        self._token_ids = token_ids
        self._batch_size = batch_size
        self._row_budget = row_budget

    def batches(self, prompts: Sequence[int]) -> Iterator[ReadoutBatch]:
        """Yield batches of the prompts, sorted by length so that little is padded."""
        ordered = sorted(prompts, key=lambda prompt: (len(self._token_ids[prompt]), prompt))
        for first in range(0, len(ordered), self._batch_size):
            chosen = ordered[first : first + self._batch_size]
            yield ReadoutBatch(self.model, chosen, [self._token_ids[prompt] for prompt in chosen], self._row_budget)


class ReadoutBatch:
    """A batch of prompts with their prefix cached; made by `ReadoutRunner.batches`."""

    def __init__(
        self, model: ChatModel, prompts: Sequence[int], token_ids: Sequence[Sequence[int]], row_budget: int
    ) -> None:
        self.model = model
        self.prompts: Int[Tensor, " batch"] = torch.tensor(prompts)
        self.variants_that_fit = max(1, row_budget // len(prompts))
        """Variants that one run may have within the row budget."""
        tokens = model.pad(token_ids)
        prefix = _run_prefix(model, tokens)
        fits = model.masks_per_query and tokens.input_ids.shape[1] <= _window(prefix)
        self._layout: _Layout = _SideBySide(tokens, prefix, model.dtype) if fits else _Rows(tokens, prefix)

    def run(self, n_variants: int, edits: Sequence[Edit] = (), record: Collection[Site] = ()) -> Readout:
        """Return logits and activations of the readout position under the edits.

        Args:
            n_variants: Runs of each prompt; every edit sees all of them, `[variant, batch, d_model]`.
            edits: Applied in order of depth; several at one site in the order given.
            record: Sites whose values are returned.
        """
        layout = self._layout
        with (
            edit(self.model, self._transforms(edits, n_variants)),
            record_sites(self.model, record, last_only=False) as recording,
        ):
            logits = self.model.model(**layout.inputs(n_variants), use_cache=True).logits
        acts = {site: layout.by_variant(value, n_variants) for site, value in recording.items()}
        return Readout(layout.by_variant(logits, n_variants), acts)

    def _transforms(self, edits: Sequence[Edit], n_variants: int) -> dict[Site, Transform]:
        by_site: dict[Site, list[ReadoutTransform]] = {}
        for each in edits:
            by_site.setdefault(each.site, []).append(each.apply)

        def transform(applied: list[ReadoutTransform]) -> Transform:
            """Return the transforms of one site as one."""

            def change(value: Tensor) -> Tensor:
                """Apply them in order on `[variant, batch, width]`, and return the layout of the run."""
                acts = self._layout.by_variant(value, n_variants)
                for apply in applied:
                    acts = apply(acts)
                return self._layout.as_run(acts).to(value)

            return change

        return {site: transform(applied) for site, applied in by_site.items()}


@torch.no_grad()
def _run_prefix(model: ChatModel, tokens: TokenBatch) -> DynamicCache:
    """Return the keys and values of all tokens but the last."""
    cache = DynamicCache(config=model.model.config)
    if tokens.input_ids.shape[1] > 1:
        model.model(
            input_ids=tokens.input_ids[:, :-1],
            attention_mask=tokens.attention_mask[:, :-1],
            position_ids=tokens.position_ids[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return cache


def _window(cache: DynamicCache) -> float:
    """Return how many tokens, itself included, a token sees in the layer that sees least."""
    return min((layer.sliding_window for layer in cache.layers if layer.is_sliding), default=math.inf)


def _shallow(cache: DynamicCache) -> DynamicCache:
    """Return a cache with layers of its own over the same tensors; extending it replaces, never writes into, them."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


class _Layout(Protocol):
    """How the variants of a batch's prompts lie in one forward pass."""

    def inputs(self, n_variants: int) -> dict[str, Any]:
        """Return the arguments of the model."""

    def by_variant(self, value: Tensor, n_variants: int) -> Float[Tensor, "variant batch width"]:
        """Return what the model has computed as `[variant, batch, width]`."""

    def as_run(self, acts: Float[Tensor, "variant batch d_model"]) -> Tensor:
        """Undo `by_variant`."""


class _SideBySide:
    """`[batch, variant]`: variants are query positions over a shared prefix, which see the prefix and themselves."""

    def __init__(self, tokens: TokenBatch, prefix: DynamicCache, dtype: torch.dtype) -> None:
        self._tokens = tokens
        self._prefix = prefix
        self._dtype = dtype
        self._mask: Float[Tensor, "batch 1 variant key"] | None = None

    def inputs(self, n_variants: int) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        return {
            "input_ids": self._tokens.input_ids[:, -1:].expand(-1, n_variants),
            "position_ids": self._tokens.position_ids[:, -1:].expand(-1, n_variants),
            "attention_mask": self._mask_of(n_variants),
            "past_key_values": _shallow(self._prefix),
        }

    def _mask_of(self, n_variants: int) -> Float[Tensor, "batch 1 variant key"]:
        if self._mask is None or self._mask.shape[2] != n_variants:
            prefix = self._tokens.is_token[:, None, :-1].expand(-1, n_variants, -1)
            itself = torch.eye(n_variants, dtype=torch.bool, device=prefix.device).expand(len(prefix), -1, -1)
            self._mask = additive_mask(torch.cat([prefix, itself], dim=-1), self._dtype)
        return self._mask

    def by_variant(self, value: Tensor, n_variants: int) -> Tensor:
        """Return `[variant, batch, ...]` of `[batch, variant, ...]`."""
        return value.transpose(0, 1)

    def as_run(self, acts: Tensor) -> Tensor:
        """Return `[batch, variant, ...]` of `[variant, batch, ...]`."""
        return acts.transpose(0, 1)


class _Rows:
    """`[variant * batch, 1]`: every variant is a row with a copy of its prompt's prefix."""

    def __init__(self, tokens: TokenBatch, prefix: DynamicCache) -> None:
        self._tokens = tokens
        self._prefix = prefix
        self._copies: tuple[int, DynamicCache] = (1, prefix)

    def inputs(self, n_variants: int) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        tokens = self._tokens
        return {
            "input_ids": tokens.input_ids[:, -1:].repeat(n_variants, 1),
            "position_ids": tokens.position_ids[:, -1:].repeat(n_variants, 1),
            "attention_mask": tokens.attention_mask.repeat(n_variants, 1),
            "past_key_values": self._prefix_of(n_variants),
        }

    def _prefix_of(self, n_variants: int) -> DynamicCache:
        if self._copies[0] != n_variants:
            copies = _shallow(self._prefix)
            if n_variants > 1 and copies.get_seq_length() > 0:
                batch = torch.arange(len(self._tokens.input_ids), device=self._tokens.input_ids.device)
                copies.batch_select_indices(batch.repeat(n_variants))
            self._copies = (n_variants, copies)
        return _shallow(self._copies[1])

    def by_variant(self, value: Tensor, n_variants: int) -> Tensor:
        """Return `[variant, batch, ...]` of `[variant * batch, 1, ...]`."""
        rows: Tensor = value[:, -1].unflatten(0, (n_variants, -1))
        return rows

    def as_run(self, acts: Tensor) -> Tensor:
        """Return `[variant * batch, 1, ...]` of `[variant, batch, ...]`."""
        return acts.flatten(0, 1).unsqueeze(1)
