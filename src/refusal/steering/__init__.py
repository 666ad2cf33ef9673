"""Act on a model along directions of its residual stream, and always leave it as it was.

`directional`: ablate, add, clamp; `gated`: only where a condition holds; `frame`: at which positions; `references`:
what an ablation leaves; `run`: scores and answers under an intervention; `losses`: what it costs on ordinary text.
"""

from refusal.steering.directional import Ablation, Addition, Clamp, Intervention, orthonormal, steered
from refusal.steering.frame import Frame, Region
from refusal.steering.gated import Gate, Gated

__all__ = [
    "Ablation",
    "Addition",
    "Clamp",
    "Frame",
    "Gate",
    "Gated",
    "Intervention",
    "Region",
    "orthonormal",
    "steered",
]
