"""Whether the SAEs of a site can carry a circuit: what was measured of them against stated limits.

A circuit is a set of latents. Where reconstructions lose most of the activation or of the refusal signal, the circuit
is in what the SAE leaves out; where another seed or other prompts give other latents, it is that training's and not the
model's. The limits ask for half: they are to catch SAEs that are broken or starved, not to rank good ones. How well
seeds agree on the answer is judged apart, by the verdict of each seed.

An SAE that was not measured (too few prompts to hold any out) is not held against its site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from refusal.artefacts import ResultPaths
from refusal.sae.records import METRICS_FILE, SaeMetrics
from refusal.schemas import Measure, SiteQuality
from refusal.sites import Site

MAX_FVU = 0.5
"""Held-out fraction of variance unexplained above which reconstructions are nearer to the mean than to the data."""
MIN_SIGNAL_RECOVERED = 0.5
"""Share of the refusal signal below which most of it is in what the SAE leaves out."""
MIN_STABILITY = 0.5
"""Matched decoder cosine, weighted by frequency, below which another seed, or other prompts, give other latents.
Unrelated directions match at .3 in 64 dimensions and at .05 in 4,096; good TopK SAEs reach .8 (2505.20254)."""
MAX_FAILING_SHARE = 1 / 3
"""Share of a site's seeds that may miss a limit, as many as may disagree on the verdict."""

LIMITS = {
    "max_sae_fvu": MAX_FVU,
    "min_sae_signal_recovered": MIN_SIGNAL_RECOVERED,
    "min_sae_stability": MIN_STABILITY,
}
"""The limits as a comparison records them."""


def site_qualities(
    paths: ResultPaths, model: str, sites: Sequence[Site], seeds: Sequence[int]
) -> tuple[SiteQuality, ...]:
    """Return the quality of the SAEs of each site, in the order of `sites`; sites without metrics are left out.

    Raises:
        ArtefactError: Metrics are damaged.
    """
    found = []
    for site in sites:
        folders = [paths.sae(model, site, seed if number else None) for number, seed in enumerate(seeds)]
        files = [folder / METRICS_FILE for folder in folders]
        metrics = [SaeMetrics.load(path) for path in files if path.exists()]
        if metrics:
            found.append(site_quality(metrics))
    return tuple(found)


def site_quality(metrics: Sequence[SaeMetrics]) -> SiteQuality:
    """Return the quality of a site from the metrics of its SAEs, the first seed first."""
    first = metrics[0]
    fidelity = [each.fidelity for each in metrics if each.fidelity is not None]
    measures = {
        name: tuple(getattr(each, name) for each in fidelity) for name in ("fvu", "signal_recovered", "loss_recovered")
    }
    pairs = [pair.weighted_mean_cosine for pair in first.seed_stability or ()]
    known = [cosine for cosine in pairs if cosine is not None]
    seeds = sum(known) / len(known) if known else None
    halves = None if first.half_stability is None else first.half_stability.weighted_mean_cosine
    return SiteQuality(
        site=first.site,
        seeds=tuple(each.seed for each in metrics),
        architecture=first.architecture,
        d_sae=first.d_sae,
        l0=None if first.heldout is None else first.heldout.l0,
        dead_share=None if first.heldout is None else first.heldout.dead_share,
        **measures,
        stability_seeds=seeds,
        stability_halves=halves,
        problems=_problems(measures, seeds, halves),
    )


def _problems(measures: Mapping[str, Sequence[Measure]], seeds: float | None, halves: float | None) -> tuple[str, ...]:
    stability = f"at least {MIN_STABILITY:.2f} is needed"
    found = [
        _missed("held-out FVU", measures["fvu"], lambda x: x > MAX_FVU, f"at most {MAX_FVU:.2f} is allowed"),
        _missed(
            "refusal signal recovered",
            measures["signal_recovered"],
            lambda x: x < MIN_SIGNAL_RECOVERED,
            f"at least {MIN_SIGNAL_RECOVERED:.2f} is needed",
        ),
    ]
    if seeds is not None and seeds < MIN_STABILITY:
        found.append(f"latents of two seeds match with a mean cosine of {seeds:.2f} ({stability})")
    if halves is not None and halves < MIN_STABILITY:
        found.append(f"latents of two halves of the prompts match with a mean cosine of {halves:.2f} ({stability})")
    return tuple(problem for problem in found if problem)


def _missed(name: str, measures: Sequence[Measure], is_bad: Callable[[float], bool], limit: str) -> str:
    """Return what is wrong in words, nothing unless more seeds miss the limit than may."""
    values = [measure.value for measure in measures if measure.value is not None]
    n_bad = sum(map(is_bad, values))
    if not values or n_bad <= MAX_FAILING_SHARE * len(values):
        return ""
    each = ", ".join(f"{value:.2f}" for value in values)
    by = " by seed" if len(values) > 1 else ""
    return f"{name} {each}{by} ({limit})"


def notices(qualities: Sequence[SiteQuality]) -> tuple[str, ...]:
    """Return a sentence for each site whose SAEs cannot carry a circuit."""
    return tuple(
        f"the SAEs at {quality.site} cannot carry a circuit: {'; '.join(quality.problems)}"
        for quality in qualities
        if quality.problems
    )


def unfit(qualities: Sequence[SiteQuality], sites: Sequence[Site]) -> tuple[SiteQuality, ...]:
    """Return those of the sites whose SAEs cannot carry a circuit; neurons have no SAE and are always fit."""
    wanted = {site.name for site in sites}
    return tuple(quality for quality in qualities if quality.site in wanted and quality.problems)
