"""What heads and MLPs write themselves, past everything that comes after them.

Patching a unit with later layers free gives its total effect: whatever feeds a decision has one as large as what makes
it. Here later writes are held:

- **direct effect** on m: m with x_last + (write in the other run - write in this run), x_last being the last residual
  state at the readout position of the run that is patched. The final norm runs as it does, nothing else does. (The same
  construction as the direct share of a site in `circuits.direct`.)
- **linear attribution** to m: the final norm's scale is held at the clean run's, so that x -> logits is linear; with g
  the gradient of m at the norm's output, a write contributes g . norm_frozen(write_clean - write_corrupted). The writes
  of all units then sum to what the last residual state contributes (Elhage et al. 2021, "A mathematical framework for
  transformer circuits"; logit attribution).
- **attribution to the refusal direction**: (write_clean - write_corrupted) . u at the readout position, u a unit vector
  at a layer, over (mean difference of the stream there) . u: a share that sums to 1 over all that is written up to that
  layer; u is the difference in means itself, or the direction that was taken (Arditi et al. 2406.11717).

A head writes its output times its part of `W_O`. Where a post-norm follows (Gemma 2 and 3, OLMo 2, GLM 4), its scale is
held as in the run, so that heads and bias still sum to what attention adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.models import ChatModel
from refusal.patching.exact import Progress
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import READOUT
from refusal.patching.units import Patch, PatchedMetric, Side, Unit, head_units, layer_units
from refusal.readout import Edit
from refusal.sites import Site, SiteKind

EPSILON = 1e-12
NEGLIGIBLE = 1e-6
"""Cosine of a direction with a difference in means below which they have nothing in common but rounding."""


def writers(model: ChatModel, *, heads: bool) -> list[Unit]:
    """Return what writes to the residual stream at the readout position: MLPs, and attention or its heads."""
    if heads:
        return head_units(model, [READOUT])
    kinds = (SiteKind.ATTENTION, SiteKind.MLP)
    return sorted((unit for kind in kinds for unit in layer_units(model, kind, [READOUT])), key=lambda unit: unit.site)


def last_site(model: ChatModel) -> Site:
    """Return the last residual state."""
    return Site(SiteKind.RESIDUALS, model.n_layers - 1)


def write_differences(runs: PairRuns, units: Sequence[Unit]) -> Float[Tensor, "unit pair d_model"]:
    """Return what each unit writes on the clean prompt less what it writes on the corrupted one, at the readout."""
    needed = {unit.site for unit in units}
    needed |= {Site(SiteKind.ATTENTION, site.layer) for site in needed if site.kind is SiteKind.HEADS}
    sides = [runs.readout(side, sorted(needed)) for side in (Side.CLEAN, Side.CORRUPTED)]
    rows: list[Tensor] = []
    heads: dict[Site, Tensor] = {}
    for unit in units:
        if unit.site.kind is not SiteKind.HEADS:
            rows.append(sides[0][unit.site] - sides[1][unit.site])
            continue
        if unit.site not in heads:
            clean, corrupted = (_head_writes(runs.model, unit.site, side) for side in sides)
            heads[unit.site] = clean - corrupted
        rows.append(heads[unit.site][:, unit.head if unit.head is not None else slice(None)].reshape(len(runs), -1))
    return torch.stack(rows)


def _head_writes(model: ChatModel, site: Site, acts: dict[Site, Tensor]) -> Float[Tensor, "pair head d_model"]:
    """Return what each head of a layer adds to the residual stream, through a post-norm of the run's own scale."""
    weights = model.head_weights(site.layer).float().cpu()
    written = torch.einsum("phk,hkd->phd", acts[site].unflatten(1, (model.n_heads, -1)), weights)
    post_norm = model.attention_post_norm(site.layer)
    if post_norm is None:
        return written
    added = acts[Site(SiteKind.ATTENTION, site.layer)]
    return frozen_norm(post_norm, added, written, written.sum(1), model)


@torch.no_grad()
def frozen_norm(
    norm: torch.nn.Module,
    output: Float[Tensor, "pair d_model"],
    parts: Float[Tensor, "pair *rest d_model"],
    total: Float[Tensor, "pair d_model"],
    model: ChatModel,
) -> Float[Tensor, "pair *rest d_model"]:
    """Return parts of a norm's input as parts of its output, with the scale that the norm had on the whole input.

    Root-mean-square norm: y = s * gamma * x with s = 1 / rms(x). Layer norm: y = s * gamma * (x - mean(x)) + beta.
    gamma is read from the norm itself (its output on a vector whose scale is known), s from the output on the whole.
    """
    is_centred = isinstance(norm, torch.nn.LayerNorm)
    weight = next(norm.parameters(), None)
    device, dtype = (model.device, model.dtype) if weight is None else (weight.device, weight.dtype)

    def direction(x: Tensor) -> Tensor:
        """Return gamma * x, centred where the norm centres, up to no scale."""
        centred = x - x.mean(-1, keepdim=True) if is_centred else x
        return torch.mul(centred, gamma)

    width = total.shape[-1]
    sign = torch.ones(1, 1, width)
    if is_centred:
        sign[..., 1::2] = -1  # mean 0, variance 1
        sign = sign if width % 2 == 0 else torch.cat([sign[..., :-1], torch.zeros(1, 1, 1)], -1)
    plus, minus = (norm((each * sign).to(device, dtype)).float().cpu()[0, 0] for each in (1.0, -1.0))
    gamma = (plus - minus) / 2 / torch.where(sign[0, 0] == 0, torch.ones(width), sign[0, 0])
    shift = (plus + minus) / 2
    whole = direction(total)
    scale = ((output - shift) * whole).sum(-1) / whole.square().sum(-1).clamp_min(EPSILON)
    return torch.mul(direction(parts), scale.reshape(-1, *[1] * (parts.dim() - 1)))


@torch.no_grad()
def direct_effects(
    runs: PairRuns, units: Sequence[Unit], patch: Patch, progress: Progress = lambda done: None
) -> PatchedMetric:
    """Return m with each unit's own write changed to that of the other run, and every later write held.

    Args:
        runs: The pairs.
        units: Writers at the readout position.
        patch: Which run is patched; only counterfactual values have a meaning here.
        progress: Told how many have been made.
    """
    last = last_site(runs.model)
    base = runs.readout(patch.mode.base, [last])[last]
    sign = 1.0 if patch.mode.base is Side.CORRUPTED else -1.0
    changes = sign * write_differences(runs, units)
    patched = np.zeros((len(units), len(runs)))
    for batch in runs.runner[patch.mode.base].batches(range(len(runs))):
        rows = batch.prompts.cpu()
        for first in range(0, len(units), batch.variants_that_fit):
            chunk = slice(first, min(len(units), first + batch.variants_that_fit))
            put = (base[rows] + changes[chunk][:, rows]).to(runs.model.device)
            logits = batch.run(len(put), [Edit(last, lambda acts, put=put: put.to(acts))]).logits  # type: ignore[misc]
            patched[chunk, rows.numpy()] = runs.metric(logits.float()).cpu().double().numpy()
            progress(len(put) * len(rows))
    return PatchedMetric(patch, tuple(units), patched, runs.m(Side.CLEAN), runs.m(Side.CORRUPTED))


def linear_attribution(runs: PairRuns, units: Sequence[Unit]) -> Float[np.ndarray, "unit pair"]:
    """Return what each unit's write contributes to m through the frozen final norm, clean less corrupted, in logits.

    Raises:
        InputError: The model has no final norm where one is looked for.
    """
    last = last_site(runs.model)
    norm = runs.model.final_norm
    total = runs.readout(Side.CLEAN, [last])[last]
    found = np.zeros((len(units), len(runs)))
    differences = write_differences(runs, units)
    for batch in runs.batches():
        rows = list(batch.rows)
        outputs: list[Tensor] = []

        def keep(module: object, args: object, output: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            """Put a leaf in the place of the norm's output."""
            outputs.append(output.detach().requires_grad_())
            return outputs[0]

        hook = norm.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                m = runs.metric(runs.logits(batch.tokens[Side.CLEAN])).sum()
                (gradient,) = torch.autograd.grad(m, outputs)
        finally:
            hook.remove()
        at_readout, g = outputs[0][:, -1].detach().float().cpu(), gradient[:, -1].float().cpu()
        parts = differences[:, rows].transpose(0, 1)
        frozen = frozen_norm(norm, at_readout, parts, total[rows], runs.model)
        found[:, rows] = torch.einsum("bud,bd->ub", frozen, g).double().numpy()
    return found


def mean_difference(runs: PairRuns, site: Site) -> Float[Tensor, " d_model"]:
    """Return mean over clean less mean over corrupted prompts at the readout position, in float64."""
    clean, corrupted = (runs.readout(side, [site])[site].double() for side in (Side.CLEAN, Side.CORRUPTED))
    return clean.mean(0) - corrupted.mean(0)


def direction_attribution(
    runs: PairRuns, units: Sequence[Unit], site: Site, direction: Float[Tensor, " d_model"]
) -> Float[np.ndarray, "unit pair"]:
    """Return each unit's write along a direction, clean less corrupted, as a share of what the stream has at a site.

    The writes up to the site sum to 1 on average, less what the embedding contributes, which is nothing at the readout
    position. Where the mean difference of the pairs has but rounding along the direction, there are no shares: nan.

    Args:
        runs: The pairs.
        units: Writers at the readout position.
        site: Residual state whose mean difference is the whole.
        direction: The difference in means itself, or another one; its length does not matter.
    """
    along = direction.double() / direction.double().norm()
    difference = mean_difference(runs, site)
    whole = float(difference @ along)
    if abs(whole) < NEGLIGIBLE * float(difference.norm()):
        whole = math.nan
    projected = write_differences(runs, units).double() @ along
    return np.asarray(projected / whole)
