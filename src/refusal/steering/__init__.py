"""Act on a model along directions of its residual stream, and always leave it as it was.

`directional`: ablate, add, clamp; `latents`: clamp latents of an SAE; `gated`: only where a condition holds; `frame`:
at which positions; `references`: what an ablation leaves; `run`: scores and answers under an intervention; `answering`:
what the model did in them; `losses`: what it costs on ordinary text.
"""

from refusal.steering.directional import Ablation, Addition, Clamp, Intervention, orthonormal, steered
from refusal.steering.frame import Frame, Region
from refusal.steering.gated import Gate, Gated
from refusal.steering.latents import LatentClamp

__all__ = [
    "Ablation",
    "Addition",
    "Clamp",
    "Frame",
    "Gate",
    "Gated",
    "Intervention",
    "LatentClamp",
    "Region",
    "orthonormal",
    "steered",
]
