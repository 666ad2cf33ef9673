"""The JSON files beside an SAE: `metrics.json` (how good it is, made from what, with what settings) and its history.

`metrics.json` is written last and holds the checksum of the weights and the fingerprint of all inputs: an SAE whose
`metrics.json` fits is complete and up to date (`is_complete`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from refusal.artefacts import sha256_file
from refusal.errors import ArtefactError
from refusal.record import Artefact, Record
from refusal.sae.formats import CONFIG_FILE, WEIGHTS_FILE
from refusal.sae.metrics import Quality, Stability
from refusal.schemas import Measure

METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
REMAKE = "python run_circuit_analysis.py --config FILE --train-saes"


class SplitQuality(Record):
    """How an SAE does on training or on held-out rows."""

    n_rows: int = Field(description="Rows looked at.")
    fvu: float | None = Field(description="Fraction of variance unexplained: 0 perfect, 1 no better than the mean.")
    explained_variance: float | None = Field(description="1 - FVU.")
    l0: float = Field(description="Mean number of active latents.")
    dead_share: float = Field(description="Share of latents never active on these rows.")
    dense_share: float = Field(description="Share of latents active on more than half of them.")
    fvu_by_category: dict[str, float | None] = Field(
        description="A category's mean squared error over the variance of all rows."
    )

    @classmethod
    def of(cls, found: Quality) -> SplitQuality:
        """Return the record of a measurement."""
        names = ("n_rows", "fvu", "explained_variance", "l0", "dead_share", "dense_share", "fvu_by_category")
        return cls(**{name: getattr(found, name) for name in names})


class MatchedLatents(Record):
    """How well latents are found again in another training, matched one to one by decoder cosine."""

    mean_cosine: float = Field(description="Mean cosine of matched latents.")
    matched_share: float = Field(description="Share of latents matched with a cosine above 0.7.")
    weighted_mean_cosine: float | None = Field(description="Mean cosine, weighted by how often latents are active.")
    weighted_matched_share: float | None = Field(description="Share above 0.7, weighted likewise.")


class SeedStability(MatchedLatents):
    """How well the latents of one seed are found again with another."""

    seeds: tuple[int, int]

    @classmethod
    def of(cls, seeds: tuple[int, int], found: Stability) -> SeedStability:
        """Return the record of a measurement."""
        return cls(seeds=seeds, **vars(found))


class HalfStability(MatchedLatents):
    """How well the latents of an SAE of one half of the training prompts are found again in that of the other half."""

    n_rows: int = Field(description="Training rows of each half; the SAE itself has both.")

    @classmethod
    def of(cls, n_rows: int, found: Stability) -> HalfStability:
        """Return the record of a measurement."""
        return cls(n_rows=n_rows, **vars(found))


class Fidelity(Record):
    """What the SAE keeps of the model at the readout position, on held-out prompts; `refusal.sae.fidelity` says how."""

    fingerprint: str = Field(description="Hash of everything that decides these numbers.")
    n_prompts: int = Field(description="Held-out prompts looked at.")
    fvu: Measure = Field(description="Fraction of variance unexplained.")
    signal_recovered: Measure = Field(
        description="1 - sum (m(x_hat) - m)^2 / sum (m(mean) - m)^2, m the refusal metric: 1 all of it, 0 no better "
        "than the mean of the training prompts."
    )
    signal_at_stake: float | None = Field(
        description="Root mean square change of m under mean ablation, logits: how much there is to recover."
    )
    loss_recovered: Measure = Field(
        description="1 - sum KL(p || p(x_hat)) / sum KL(p || p(mean)), p the distribution of the first answer token."
    )
    loss_at_stake: float | None = Field(description="Mean KL under mean ablation, nats.")
    reconstruction_bias: float | None = Field(
        description="|x_hat|^2 / (x . x_hat), both less the mean: below 1 reconstructions are too short."
    )


class SaeMetrics(Artefact):
    """`saes/MODEL/SITE/metrics.json`."""

    SCHEMA = "refusal-circuits/sae-metrics/1"
    MADE_BY = REMAKE
    model: str
    site: str
    seed: int | None = Field(description="Seed of the training; null for a pretrained SAE.")
    source: str = Field(description="trained, or the folder that a pretrained SAE was copied from.")
    architecture: str
    d_model: int
    d_sae: int
    weights_sha256: str = Field(description="Checksum of sae_weights.safetensors.")
    config_sha256: str | None = Field(None, description="Checksum of cfg.json; null in files of earlier versions.")
    fingerprint: str = Field(description="Hash of everything that decides the weights.")
    settings: dict[str, float | int | str] = Field({}, description="Settings as resolved.")
    reasons: dict[str, str] = Field({}, description="Why each setting is what it is.")
    best_step: int | None = Field(None, description="Step whose weights were kept: the best held-out FVU.")
    stop_reason: str | None = Field(None, description="Why training ended.")
    heldout_prompt_ids: tuple[str, ...] = Field((), description="Prompts the SAE was not trained on.")
    train: SplitQuality | None = Field(description="On the training rows; for a pretrained SAE, on all rows.")
    heldout: SplitQuality | None = Field(description="On held-out rows; null when there are none.")
    seed_stability: tuple[SeedStability, ...] | None = Field(
        None, description="Agreement with every other seed, in the first seed's file; null with one seed."
    )
    half_stability: HalfStability | None = Field(
        None, description="Agreement between halves of the training prompts, in the first seed's file."
    )
    duplicate_share: float | None = Field(
        None, description="Share of latents that have another one with a decoder cosine above 0.9."
    )
    fidelity: Fidelity | None = Field(
        None, description="What it keeps of the model's behaviour; null without held-out prompts."
    )


class HistoryPoint(Record):
    """One evaluation during training."""

    step: int
    lr: float = Field(description="Learning rate of the last step.")
    fvu_train: float = Field(description="FVU on fixed training rows.")
    fvu_heldout: float | None = Field(description="FVU on held-out rows.")
    l0: float = Field(description="Mean number of active latents.")
    dead_share: float = Field(description="Share of latents not active on 2,000 rows of training.")


class TrainingHistory(Artefact):
    """`saes/MODEL/SITE/SITE_training_history.json`."""

    SCHEMA = "refusal-circuits/sae-training-history/1"
    MADE_BY = REMAKE
    model: str
    site: str
    seed: int
    points: tuple[HistoryPoint, ...]


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Return whether a folder holds a whole SAE, as it was written, made from the inputs with this fingerprint."""
    weights = folder / WEIGHTS_FILE
    if not (folder / METRICS_FILE).exists() or not (folder / CONFIG_FILE).exists() or not weights.exists():
        return False
    try:
        metrics = SaeMetrics.load(folder / METRICS_FILE)
        if metrics.seed is not None:
            TrainingHistory.load(folder / f"{metrics.site}_training_history.json")
    except ArtefactError:  # damaged: to be made again
        return False
    if metrics.config_sha256 not in (None, sha256_file(folder / CONFIG_FILE)):
        return False
    return metrics.fingerprint == fingerprint and metrics.weights_sha256 == sha256_file(weights)
