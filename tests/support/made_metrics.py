"""Metrics of an SAE, made up: good unless told otherwise."""

from __future__ import annotations

from refusal.sae.records import Fidelity, HalfStability, SaeMetrics, SeedStability, SplitQuality
from refusal.schemas import Measure


def measure(value: float | None, width: float = 0.02) -> Measure:
    ends = (None, None) if value is None else (value - width, value + width)
    reason = (
        "mean ablation moves the refusal metric by 0.01 logits where prompts differ by 5" if value is None else None
    )
    return Measure(value=value, low=ends[0], high=ends[1], n=100, method="bootstrap", reason=reason)


def split_quality(fvu: float) -> SplitQuality:
    return SplitQuality(
        n_rows=100,
        fvu=fvu,
        explained_variance=1 - fvu,
        l0=4.0,
        dead_share=0.05,
        dense_share=0.1,
        fvu_by_category={"privacy": fvu, "violence": fvu},
    )


def cosines(value: float) -> dict[str, float]:
    return {
        "mean_cosine": value,
        "matched_share": value,
        "weighted_mean_cosine": value,
        "weighted_matched_share": value,
    }


def sae_metrics(
    site: str = "residuals_1",
    seed: int | None = 0,
    fvu: float = 0.05,
    signal: float | None = 0.97,
    seeds: float | None = 0.75,
    halves: float | None = 0.7,
) -> SaeMetrics:
    """Return the metrics; None means that a number was not measured."""
    return SaeMetrics.build(
        model="planted/modular",
        site=site,
        seed=seed,
        source="trained" if seed is not None else "/somewhere/else",
        architecture="topk",
        d_model=64,
        d_sae=56,
        weights_sha256="0" * 64,
        fingerprint="1" * 64,
        settings={"d_sae": 56, "k": 4, "steps": 1000, "lr": 0.008, "batch_size": 32},
        reasons={"d_sae": "auto: one latent per 16 of the 900 training rows", "k": "as configured"},
        best_step=900,
        stop_reason="all 1000 steps done",
        heldout_prompt_ids=("80k-000001", "toxic-000002"),
        train=split_quality(fvu * 0.9),
        heldout=split_quality(fvu),
        seed_stability=None if seeds is None else (SeedStability(seeds=(0, 1), **cosines(seeds)),),
        half_stability=None if halves is None else HalfStability(n_rows=400, **cosines(halves)),
        duplicate_share=0.02,
        fidelity=Fidelity(
            fingerprint="2" * 64,
            n_prompts=100,
            fvu=measure(fvu),
            signal_recovered=measure(signal),
            signal_at_stake=9.5,
            loss_recovered=measure(0.95),
            loss_at_stake=1.2,
            reconstruction_bias=0.98,
        ),
    )
