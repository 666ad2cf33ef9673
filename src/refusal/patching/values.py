"""The values that patches put in: those of the other prompt, means over other pairs, or zeros.

The mean of a position is over the other side of *other* pairs, of the same category where it has any. At the chat
frame's end it is taken position by position; over the user's words, whose number differs, it is one vector. Before the
user's words all prompts are the same, so there the values are the prompt's own.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.patching.runs import PairBatch, PairRuns
from refusal.patching.units import Ablation, Patch, Side
from refusal.sites import Site


class PatchValues:
    """What a way of patching puts in, at any site of any pair.

    Args:
        runs: The pairs.
        patch: The way of patching.
        sites: Sites that will be asked for.
    """

    def __init__(self, runs: PairRuns, patch: Patch, sites: Collection[Site]) -> None:
        self.runs = runs
        self.patch = patch
        self.sites = tuple(sites)
        self._others: Float[Tensor, "pair pair"] | None = None
        self._words: dict[Site, Float[Tensor, "pair width"]] = {}
        self._end: dict[Site, Float[Tensor, "pair n_after width"]] = {}

    def at_readout(self) -> dict[Site, Float[Tensor, "pair _"]]:
        """Return the values at the readout position of every pair; float32, on the CPU."""
        own = self.runs.readout(self.patch.mode.source, self.sites)
        if self.patch.ablation is Ablation.COUNTERFACTUAL:
            return own
        if self.patch.ablation is Ablation.ZERO:
            return {site: torch.zeros_like(acts) for site, acts in own.items()}
        others = other_pairs(self.runs.categories)
        return {site: others @ acts for site, acts in own.items()}

    def everywhere(self, batch: PairBatch) -> dict[Site, Float[Tensor, "batch pos _"]]:
        """Return the values at every position of a batch."""
        own = self.runs.everywhere(batch, self.patch.mode.source, self.sites)
        if self.patch.ablation is Ablation.COUNTERFACTUAL:
            return own
        if self.patch.ablation is Ablation.ZERO:
            return {site: torch.zeros_like(acts) for site, acts in own.items()}
        if self._others is None:
            self._others = other_pairs(self.runs.categories)
            self._words, self._end = mean_parts(self.runs, self.patch.mode.source, self.sites)
        return {site: self._means(site, acts, batch) for site, acts in own.items()}

    def _means(
        self, site: Site, own: Float[Tensor, "batch pos width"], batch: PairBatch
    ) -> Float[Tensor, "batch pos width"]:
        assert self._others is not None
        rows = self._others[list(batch.rows)]
        words = (rows @ self._words[site]).to(own)
        end = torch.einsum("bp,pnw->bnw", rows, self._end[site]).to(own)
        means = torch.where(word_columns(batch, self.runs)[..., None].to(own.device), words[:, None], own)
        n_after = end.shape[1]
        return torch.cat([means[:, :-n_after], end], dim=1)


def other_pairs(categories: Collection[str]) -> Float[Tensor, "pair pair"]:
    """Return weights that average, for each pair, the other pairs of its category; all others where it is alone.

    >>> other_pairs(("a", "a", "b"))
    tensor([[0.0000, 1.0000, 0.0000],
            [1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000]])
    """
    names = np.array(list(categories))
    is_other = ~np.eye(len(names), dtype=bool)
    same = (names[:, None] == names[None, :]) & is_other
    chosen = np.where(same.any(1, keepdims=True), same, is_other)
    return torch.from_numpy(chosen / np.maximum(chosen.sum(1, keepdims=True), 1)).float()


def word_columns(batch: PairBatch, runs: PairRuns) -> Bool[Tensor, "batch pos"]:
    """Return the columns of the user's words that both prompts of a pair have, counted from the end."""
    width, frame = batch.width, runs.frame
    found = torch.zeros(len(batch.pairs), width, dtype=torch.bool)
    for row, pair in enumerate(batch.pairs):
        shortest = min(len(pair.clean), len(pair.corrupted))
        found[row, width - shortest + frame.n_before : width - frame.n_after] = True
    return found


def mean_parts(
    runs: PairRuns, side: Side, sites: Collection[Site]
) -> tuple[dict[Site, Float[Tensor, "pair _"]], dict[Site, Float[Tensor, "pair n_after _"]]]:
    """Return, per pair, the mean over the user's words, and the values at the chat frame's end; float32, on the CPU."""
    words: dict[Site, list[Tensor]] = {site: [torch.zeros(0)] * len(runs) for site in sites}
    end: dict[Site, list[Tensor]] = {site: [torch.zeros(0)] * len(runs) for site in sites}
    for batch in runs.batches():
        acts = runs.everywhere(batch, side, sites)
        chosen = word_columns(batch, runs)
        for site in sites:
            values = acts[site].float().cpu()
            for place, row in enumerate(batch.rows):
                own = values[place, chosen[place]]
                words[site][row] = own.mean(0) if len(own) else torch.zeros(values.shape[-1])
                end[site][row] = values[place, -runs.frame.n_after :]
    return (
        {site: torch.stack(each) for site, each in words.items()},
        {site: torch.stack(each) for site, each in end.items()},
    )
