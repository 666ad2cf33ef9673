"""Linear probes of refused against complied prompts, judged on prompts they were not fitted to.

    logistic                   w of L2-penalised logistic regression on standardised activations, back in their units
    mass-mean                  w = mean refused - mean complied
    mass-mean with covariance  w = S^-1 (mean refused - mean complied), S: covariance within the classes, shrunk

A prompt counts as refused where x w lies above the middle between the projections of the two class means (for the
logistic probe: above its own threshold). Accuracy pools the held-out prompts of all folds; the AUC compares prompts of
the same fold only. Source: Marks and Tegmark arXiv 2310.06824, section 4 (mass-mean); Ledoit and Wolf 2004, J.
Multivar. Anal. 88, 365 (shrinkage, because prompts are fewer than dimensions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.random import Generator

from refusal.stats import Estimate, auc, auc_interval, wilson_interval

Acts = Float[np.ndarray, "prompt d_model"]
Side = Bool[np.ndarray, " prompt"]
N_FOLDS = 5
LOGISTIC_C = 0.1
"""Inverse strength of the logistic probe's penalty; prompts are few, so it is strong."""


class ProbeKind(StrEnum):
    """How a probe is fitted."""

    LOGISTIC = "logistic"
    """Logistic regression."""
    MASS_MEAN = "mass_mean"
    """Difference in means."""
    MASS_MEAN_COVARIANCE = "mass_mean_covariance"
    """Difference in means, whitened by the covariance within the classes."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe: refused where `acts @ weight > threshold`."""

    weight: Float[np.ndarray, " d_model"]
    threshold: float


@dataclass(frozen=True)
class ProbeQuality:
    """How well probes of one kind tell refused from complied prompts they have not seen."""

    accuracy: Estimate
    """Share judged rightly, Wilson interval."""
    auc: Estimate


def fit(kind: ProbeKind, acts: Acts, is_refused: Side) -> Probe:
    """Return a probe fitted to all prompts given; both classes must have at least two."""
    return _FITS[kind](np.asarray(acts, dtype=np.float64), is_refused)


def _fit_mass_mean(acts: Acts, is_refused: Side) -> Probe:
    refused, complied = acts[is_refused].mean(0), acts[~is_refused].mean(0)
    weight = refused - complied
    return Probe(weight, float((refused + complied) @ weight / 2))


def _fit_mass_mean_covariance(acts: Acts, is_refused: Side) -> Probe:
    from sklearn.covariance import ledoit_wolf

    refused, complied = acts[is_refused].mean(0), acts[~is_refused].mean(0)
    within = np.where(is_refused[:, None], acts - refused, acts - complied)
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    floor = np.finfo(np.float64).eps * max(float(np.trace(covariance)), 1.0)
    weight = np.linalg.solve(covariance + floor * np.eye(len(covariance)), refused - complied)
    return Probe(weight, float((refused + complied) @ weight / 2))


def _fit_logistic(acts: Acts, is_refused: Side) -> Probe:
    from sklearn.linear_model import LogisticRegression

    centre, spread = acts.mean(0), acts.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=LOGISTIC_C, max_iter=2000).fit((acts - centre) / spread, is_refused)
    weight = model.coef_[0] / spread
    return Probe(weight, float(centre @ weight - model.intercept_[0]))


_FITS: dict[ProbeKind, Callable[[Acts, Side], Probe]] = {
    ProbeKind.LOGISTIC: _fit_logistic,
    ProbeKind.MASS_MEAN: _fit_mass_mean,
    ProbeKind.MASS_MEAN_COVARIANCE: _fit_mass_mean_covariance,
}


def cross_validate(kind: ProbeKind, acts: Acts, is_refused: Side, generator: Generator) -> ProbeQuality:
    """Return how well probes of a kind do on held-out prompts, over stratified folds.

    Args:
        kind: How to fit.
        acts: One row per prompt.
        is_refused: The class of each prompt.
        generator: Assigns prompts to folds.
    """
    counts = int(is_refused.sum()), int((~is_refused).sum())
    if min(counts) < 2 * 2:  # a fold's training part needs two of each class
        reason = "fewer than four prompts in a class"
        missing = Estimate(None, None, None, sum(counts), method="cross-validated", reason=reason)
        return ProbeQuality(missing, missing)
    acts = np.asarray(acts, dtype=np.float64)
    fold = _folds(is_refused, min(N_FOLDS, *counts), generator)
    right, concordant, pairs = 0, 0.0, 0
    for held_out in (fold == index for index in range(int(fold.max()) + 1)):
        probe = fit(kind, acts[~held_out], is_refused[~held_out])
        scores = acts[held_out] @ probe.weight
        right += int(((scores > probe.threshold) == is_refused[held_out]).sum())
        n_pairs = int(is_refused[held_out].sum() * (~is_refused[held_out]).sum())
        concordant += n_pairs * (auc(scores, is_refused[held_out]) or 0.0)
        pairs += n_pairs
    return ProbeQuality(wilson_interval(right, sum(counts)), auc_interval(min(1.0, concordant / pairs), *counts))


def _folds(is_refused: Side, n_folds: int, generator: Generator) -> Int[np.ndarray, " prompt"]:
    fold = np.empty(len(is_refused), dtype=np.int64)
    for members in (np.flatnonzero(is_refused), np.flatnonzero(~is_refused)):
        fold[generator.permutation(members)] = np.arange(len(members)) % n_folds
    return fold
