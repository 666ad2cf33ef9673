"""Run a model again at the readout position only, with everything before it cached.

An intervention at the readout position (the last prompt token) leaves the keys and values of earlier positions as they
are. So the prefix of a batch of prompts runs once, and each variant (an ablation, a point of an integration path) costs
one token per prompt instead of the whole prompt. Variants are stacked as rows that share the prefix.

The result equals the full forward pass up to rounding; gradients flow through edits, not into the prefix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from refusal.interventions import edit, record
from refusal.models import ChatModel
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
        row_budget: Rows (variants x prompts) of one forward pass, at most.
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
        self._tokens = model.pad(token_ids)
        self._cache = self._run_prefix()
        self._expanded: tuple[int, Any] = (1, self._cache)

    @torch.no_grad()
    def _run_prefix(self) -> Any:
        tokens = self._tokens
        cache = DynamicCache(config=self.model.model.config)
        if tokens.input_ids.shape[1] > 1:
            self.model.model(
                input_ids=tokens.input_ids[:, :-1],
                attention_mask=tokens.attention_mask[:, :-1],
                position_ids=tokens.position_ids[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cache

    def _prefix(self, n_variants: int) -> Any:
        """Return the prefix for every variant; extending the copy replaces, never writes into, the shared tensors."""
        if self._expanded[0] != n_variants:
            cache = _shallow(self._cache)
            if n_variants > 1 and cache.get_seq_length() > 0:
                index = torch.arange(len(self.prompts), device=self._tokens.input_ids.device).repeat(n_variants)
                cache.batch_select_indices(index)
            self._expanded = (n_variants, cache)
        return _shallow(self._expanded[1])

    def run(self, n_variants: int, edits: Sequence[Edit] = (), record: Collection[Site] = ()) -> Readout:
        """Return logits and activations of the readout position under the edits.

        Args:
            n_variants: Rows per prompt; every edit sees all of them, `[variant, batch, d_model]`.
            edits: Applied in order of depth; several at one site in the order given.
            record: Sites whose values are returned.
        """
        tokens, batch = self._tokens, len(self.prompts)

        def rows(tensor: Tensor) -> Tensor:
            return tensor.repeat(n_variants, 1)

        with edit(self.model, self._transforms(edits, n_variants)), _record(self.model, record) as recording:
            output = self.model.model(
                input_ids=rows(tokens.input_ids[:, -1:]),
                attention_mask=rows(tokens.attention_mask),
                position_ids=rows(tokens.position_ids[:, -1:]),
                past_key_values=self._prefix(n_variants),
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].unflatten(0, (n_variants, batch))
        acts = {site: value[:, -1].unflatten(0, (n_variants, batch)) for site, value in recording.items()}
        return Readout(logits, acts)

    def _transforms(self, edits: Sequence[Edit], n_variants: int) -> dict[Site, Any]:
        by_site: dict[Site, list[ReadoutTransform]] = {}
        for each in edits:
            by_site.setdefault(each.site, []).append(each.apply)

        def transform(applied: list[ReadoutTransform]) -> Callable[[Tensor], Tensor]:
            def change(value: Tensor) -> Tensor:
                acts = value[:, -1].unflatten(0, (n_variants, len(self.prompts)))
                for apply in applied:
                    acts = apply(acts)
                rows: Tensor = acts.flatten(0, 1).unsqueeze(1).to(value)
                return rows

            return change

        return {site: transform(applied) for site, applied in by_site.items()}


_record = record


def _shallow(cache: Any) -> Any:
    """Return a cache with layers of its own over the same tensors; updating it leaves the original as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied
