"""Exact patching: every patch is made and m measured.

1. the sides that give values are run once, and their activations kept;
2. patches are rows of one batch: many units at once, each in a copy of the prompts of its own;
3. units at the readout position alone leave all earlier positions as they are, so those come from a cached prefix
   (`refusal.readout`) and a copy costs one token a prompt; other units cost the whole prompt.

Source: Vig et al. 2004.12265 (mediation by heads and neurons), Meng et al. 2202.05262.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.interventions import Transform, edit
from refusal.patching.runs import PairBatch, PairRuns
from refusal.patching.tokens import Place
from refusal.patching.units import Patch, PatchedMetric, Side, Unit, slice_of
from refusal.patching.values import PatchValues
from refusal.readout import Edit, ReadoutBatch
from refusal.sites import Site

Progress = Callable[[int], object]
"""Called with the number of unit x pair patches that were made since the last call."""


@torch.no_grad()
def patch_units(
    runs: PairRuns, units: Sequence[Unit], patch: Patch, progress: Progress = lambda done: None
) -> PatchedMetric:
    """Return m under every patch, for every pair.

    Args:
        runs: The pairs.
        units: What to patch, each by itself.
        patch: Which way, and with which values.
        progress: Told how many patches have been made.
    """
    patched = np.full((len(units), len(runs)), np.nan)
    at_readout = [row for row, unit in enumerate(units) if unit.place.is_readout]
    elsewhere = [row for row, unit in enumerate(units) if not unit.place.is_readout]
    if at_readout:
        patched[at_readout] = _at_readout(runs, [units[row] for row in at_readout], patch, progress)
    if elsewhere:
        patched[elsewhere] = _everywhere(runs, [units[row] for row in elsewhere], patch, progress)
    return PatchedMetric(patch, tuple(units), patched, runs.m(Side.CLEAN), runs.m(Side.CORRUPTED))


def _sites(units: Sequence[Unit]) -> list[Site]:
    return sorted({unit.site for unit in units})


def _at_readout(
    runs: PairRuns, units: Sequence[Unit], patch: Patch, progress: Progress
) -> Float[np.ndarray, "unit pair"]:
    values = PatchValues(runs, patch, _sites(units)).at_readout()
    found = np.zeros((len(units), len(runs)))
    for batch in runs.runner[patch.mode.base].batches(range(len(runs))):
        rows = batch.prompts.cpu()
        for first in range(0, len(units), batch.variants_that_fit):
            chunk = units[first : first + batch.variants_that_fit]
            found[first : first + len(chunk), rows.numpy()] = _run_readout(runs, batch, chunk, values)
            progress(len(chunk) * len(rows))
    return found


def _run_readout(
    runs: PairRuns, batch: ReadoutBatch, units: Sequence[Unit], values: dict[Site, Tensor]
) -> Float[np.ndarray, "unit batch"]:
    rows = batch.prompts.cpu()
    edits = []
    for site, variants in _by_site(units).items():
        put = values[site][rows].to(runs.model.device)
        entries = [slice_of(units[variant], put.shape[-1], runs.model.n_heads) for variant in variants]
        edits.append(Edit(site, _put_at_readout(put, list(zip(variants, entries, strict=True)))))
    logits = batch.run(len(units), edits).logits.float()
    return runs.metric(logits).cpu().double().numpy()


def _by_site(units: Sequence[Unit]) -> dict[Site, list[int]]:
    found: dict[Site, list[int]] = {}
    for variant, unit in enumerate(units):
        found.setdefault(unit.site, []).append(variant)
    return found


def _put_at_readout(put: Float[Tensor, "batch width"], variants: list[tuple[int, slice]]) -> Callable[[Tensor], Tensor]:
    """Return what puts values into some variants of `[variant, batch, width]`."""

    def change(acts: Tensor) -> Tensor:
        """Put the values in, on a copy."""
        changed = acts.clone()
        for variant, entries in variants:
            changed[variant, :, entries] = put[:, entries].to(acts)
        return changed

    return change


def _everywhere(
    runs: PairRuns, units: Sequence[Unit], patch: Patch, progress: Progress
) -> Float[np.ndarray, "unit pair"]:
    values = PatchValues(runs, patch, _sites(units))
    found = np.full((len(units), len(runs)), np.nan)
    for batch in runs.batches():
        puts = values.everywhere(batch)
        masks = {place: batch.mask(place, runs.frame) for place in {unit.place for unit in units}}
        # a unit that corresponds in no pair of the batch is not run
        known = [row for row, unit in enumerate(units) if bool(masks[unit.place].any())]
        size = batch.variants_that_fit()
        for first in range(0, len(known), size):
            chunk = known[first : first + size]
            scores = _run_everywhere(runs, batch, patch, [units[row] for row in chunk], _Puts(puts, masks))
            for row, score in zip(chunk, scores, strict=True):
                is_patched = masks[units[row].place].any(1).numpy()
                found[row, np.array(batch.rows)[is_patched]] = score[is_patched]
            progress(len(chunk) * len(batch.rows))
    return found


@dataclass(frozen=True)
class _Puts:
    """What is put in where, for one batch."""

    values: dict[Site, Float[Tensor, "batch pos _"]]
    masks: dict[Place, Bool[Tensor, "batch pos"]]


def _run_everywhere(
    runs: PairRuns, batch: PairBatch, patch: Patch, units: Sequence[Unit], puts: _Puts
) -> Float[np.ndarray, "unit batch"]:
    n_heads = runs.model.n_heads

    def transform(site: Site, variants: list[int]) -> Transform:
        """Return what puts values into some variants of `[variant * batch, pos, width]`."""

        def change(acts: Tensor) -> Tensor:
            """Put the values in, on a copy."""
            put = puts.values[site].to(acts)
            changed = acts.unflatten(0, (len(units), -1)).clone()
            for variant in variants:
                entries = slice_of(units[variant], put.shape[-1], n_heads)
                mask = puts.masks[units[variant].place].to(acts.device)[..., None]
                changed[variant, :, :, entries] = torch.where(mask, put[..., entries], changed[variant, :, :, entries])
            return torch.flatten(changed, 0, 1)

        return change

    with edit(runs.model, {site: transform(site, variants) for site, variants in _by_site(units).items()}):
        logits = runs.logits(batch.tokens[patch.mode.base], len(units))
    return np.asarray(runs.metric(logits).unflatten(0, (len(units), -1)).cpu().double())
