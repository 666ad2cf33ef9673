"""What a model still does when the activation of a site is replaced with an SAE's reconstruction of it.

An SAE can explain nearly all variance and miss the little that decides. So the activation at the readout position is
replaced, the rest of the model runs, and two things are compared with the unchanged prompt: the refusal metric m and
the distribution p of the first answer token. Replacing with the mean of the training rows is the worst that counts:

    signal recovered = 1 - sum (m(x_hat) - m)^2 / sum (m(mean) - m)^2
    loss recovered   = 1 - sum KL(p || p(x_hat)) / sum KL(p || p(mean))

1 is a perfect reconstruction, 0 one that is no better than the mean; worse is negative, and nothing is clipped. The
squares keep errors of opposite sign on different prompts from cancelling. Sums run over held-out prompts, the mean over
training prompts, so that no prompt is ablated with a mean that it is part of.

Source: the second is the KL score of SAEBench (Karvonen et al. 2503.09532) with mean in place of zero ablation; the
first puts a task's metric in its place, as Makelov et al. 2405.08366 judge SAEs by the logit difference of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutBatch, ReadoutRunner, ReadoutTransform
from refusal.sites import Site
from refusal.stats import Estimate, Weights, bootstrap

MIN_AT_STAKE = 0.05
"""Root mean square change of m under mean ablation, over the standard deviation of m, below which the site does not
carry the signal and a share of it says nothing."""

MIN_DIVERGENCE = 1e-4
"""Mean KL under mean ablation, nats, below which the same holds for the loss: rounding is of that size."""


@dataclass(frozen=True)
class Replacement:
    """What to put in place of a site's activation at the readout position."""

    site: Site
    values: Float[Tensor, "prompt d_model"]
    """One row a prompt of the runner."""


@dataclass(frozen=True)
class Damage:
    """What a replacement does to each prompt."""

    metric: Float[np.ndarray, " prompt"] | None
    """m(x') - m(x), logits; None where the model has no refusal metric."""
    divergence: Float[np.ndarray, " prompt"]
    """KL(p || p') of the first answer token, nats."""


@dataclass(frozen=True)
class Damages:
    """Unchanged prompts and what the replacements do to them."""

    metric: Float[np.ndarray, " prompt"] | None
    """m(x) of the unchanged prompts, logits."""
    of: list[Damage]
    """In the order of the replacements."""


@torch.no_grad()
def measure_damage(
    runner: ReadoutRunner, metric: RefusalMetric | None, n_prompts: int, replacements: Sequence[Replacement]
) -> Damages:
    """Return what each replacement does to the prompts 0 to `n_prompts` - 1 of a runner.

    All replacements of a batch of prompts are variants over one cached prefix; the unchanged prompt is one more.
    """
    base = np.zeros(n_prompts)
    scores, divergences = np.zeros((2, len(replacements), n_prompts))
    for batch in runner.batches(range(n_prompts)):
        rows = batch.prompts.cpu()
        step = max(1, batch.variants_that_fit - 1)
        for first in range(0, len(replacements), step):
            chosen = replacements[first : first + step]
            logits = _run(batch, chosen, rows)
            place = np.ix_(np.arange(first, first + len(chosen)), rows.numpy())
            divergences[place] = torch.stack([_divergence(logits[0], each) for each in logits[1:]]).cpu().numpy()
            if metric is not None:
                found = torch.stack([metric(each.float()) for each in logits]).double().cpu().numpy()
                base[rows.numpy()], scores[place] = found[0], found[1:] - found[0]
    has_metric = metric is not None
    damages = [
        Damage(change if has_metric else None, divergence)
        for change, divergence in zip(scores, divergences, strict=True)
    ]
    return Damages(base if has_metric else None, damages)


def _run(
    batch: ReadoutBatch, replacements: Sequence[Replacement], rows: Int[Tensor, " batch"]
) -> Float[Tensor, "variant batch vocab"]:
    """Return the logits of the unchanged prompts, then of each replacement."""
    of_site: dict[Site, list[int]] = {}
    for variant, each in enumerate(replacements, 1):
        of_site.setdefault(each.site, []).append(variant)
    edits = [
        Edit(site, _put(variants, torch.stack([replacements[variant - 1].values[rows] for variant in variants])))
        for site, variants in of_site.items()
    ]
    return batch.run(1 + len(replacements), edits).logits


def _put(variants: list[int], values: Float[Tensor, "chosen batch d_model"]) -> ReadoutTransform:
    """Return the edit that gives some variants these values."""

    def put(acts: Float[Tensor, "variant batch d_model"]) -> Float[Tensor, "variant batch d_model"]:
        """Put the values in the place of the chosen variants."""
        return acts.index_copy(0, torch.tensor(variants, device=acts.device), values.to(acts))

    return put


def _divergence(before: Float[Tensor, "batch vocab"], after: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """Return KL(p || p') of logits, nats."""
    log_p, log_q = (logits.float().log_softmax(-1) for logits in (before, after))
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().clamp_min(0)


def share_recovered(
    by_sae: Float[np.ndarray, " prompt"], by_mean: Float[np.ndarray, " prompt"], weights: Weights
) -> Estimate:
    """Return 1 - sum of the SAE's damages / sum of mean ablation's, with a bootstrap interval over prompts.

    >>> share_recovered(np.array([0.0, 1.0]), np.array([1.0, 3.0]), np.ones((1, 2))).value
    0.75
    """
    return bootstrap(lambda w: 1 - (w @ by_sae) / (w @ by_mean), weights)


def signal_recovered(sae: Damage, mean: Damage, base: Float[np.ndarray, " prompt"], weights: Weights) -> Estimate:
    """Return the share of the refusal signal that a reconstruction keeps; see the module for the formula.

    Not measured, with the reason, where mean ablation hardly moves m: the site does not carry the signal.
    """
    assert sae.metric is not None
    assert mean.metric is not None
    at_stake, spread = at_stake_of(mean), float(base.std())
    if at_stake is None or at_stake <= MIN_AT_STAKE * spread:
        reason = (
            f"mean ablation moves the refusal metric by {at_stake or 0:.2g} logits where prompts differ by {spread:.2g}"
        )
        return Estimate(None, None, None, len(base), method="bootstrap", reason=reason)
    return share_recovered(sae.metric**2, mean.metric**2, weights)


def loss_recovered(sae: Damage, mean: Damage, weights: Weights) -> Estimate:
    """Return the share of mean ablation's divergence that a reconstruction avoids; see the module for the formula."""
    if float(mean.divergence.mean()) <= MIN_DIVERGENCE:
        reason = "mean ablation does not change what the model says"
        return Estimate(None, None, None, len(mean.divergence), method="bootstrap", reason=reason)
    return share_recovered(sae.divergence, mean.divergence, weights)


def at_stake_of(mean: Damage) -> float | None:
    """Return the root mean square change of m under mean ablation, logits."""
    return None if mean.metric is None else float(np.sqrt(np.mean(mean.metric**2)))


def fvu_estimate(
    acts: Float[Tensor, "prompt d_model"], reconstruction: Float[Tensor, "prompt d_model"], weights: Weights
) -> Estimate:
    """Return FVU with a bootstrap interval over prompts; the mean of the activations is held fixed."""
    x, x_hat = acts.double(), reconstruction.double()
    error = (x - x_hat).square().sum(1).cpu().numpy()
    spread = (x - x.mean(0)).square().sum(1).cpu().numpy()
    return bootstrap(lambda w: (w @ error) / (w @ spread), weights)
