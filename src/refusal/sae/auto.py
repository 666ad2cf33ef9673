"""What `auto` means for an SAE: each value comes with the reason that is printed and stored."""

from __future__ import annotations

from dataclasses import dataclass

from refusal.config import SaeConfig
from refusal.sae.trainer import TrainingSettings

MAX_D_SAE = 16_384
ROWS_PER_LATENT = 4
WIDTHS = 4


@dataclass(frozen=True)
class Resolved:
    """Settings with the reason for each."""

    settings: TrainingSettings
    reasons: dict[str, str]


def resolve(config: SaeConfig, n_rows: int, d_model: int) -> Resolved:
    """Return the settings for a site.

    Args:
        config: As configured; `auto` is resolved here.
        n_rows: Training rows (held-out ones not counted).
        d_model: Width of the activations.
    """
    reasons: dict[str, str] = {}

    def value(name: str, automatic: float, reason: str) -> float:
        configured = getattr(config, name)
        reasons[name] = reason if configured == "auto" else "as configured"
        return automatic if configured == "auto" else configured

    widest = min(WIDTHS * d_model, MAX_D_SAE)
    from_rows = max(16, n_rows // ROWS_PER_LATENT)
    d_sae = int(
        value(
            "d_sae",
            min(widest, from_rows),
            f"{WIDTHS} x d_model, at most one latent for {ROWS_PER_LATENT} of the {n_rows} training rows",
        )
    )
    k = int(value("k", max(2, min(32, round(d_sae / 40))), "d_sae / 40 within 2 to 32: too small blurs, too large lies"))
    batch_size = int(value("batch_size", max(16, min(1024, n_rows // 4)), "a quarter of the rows, at most 1024"))
    steps = int(value("steps", 1500, "enough for the held-out FVU to level off; training stops there"))
    lr = float(value("lr", 3e-3 if d_sae <= 1024 else 1e-3, "3e-3 up to 1024 latents, 1e-3 above"))
    return Resolved(TrainingSettings(d_sae, k, steps, min(batch_size, n_rows), lr), reasons)
