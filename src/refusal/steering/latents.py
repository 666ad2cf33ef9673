"""Set latents of an SAE to values while the model runs; what the SAE does not reconstruct stays as it is.

    x' = x + sum over latents i of (b_i - f_i(x)) d_i        f: the SAE's code of x, d_i: its decoder rows

Source: Templeton et al. 2024, "Scaling monosemanticity" (clamping).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from refusal.interventions import Transform
from refusal.models import ChatModel
from refusal.sae.base import SparseAutoencoder
from refusal.sites import Site
from refusal.steering.directional import Place, within
from refusal.steering.frame import Frame, Region


@dataclass(frozen=True)
class LatentClamp:
    """Sets latents of a site's SAE to values."""

    site: Site
    sae: SparseAutoencoder
    latents: Int[Tensor, " node"]
    values: Float[Tensor, "*row node"]
    """One set for all rows of a batch, or `[row, 1, node]`."""
    region: Region = Region.ALL

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the one place."""
        yield self.site, within(self.region, frame, self.change)

    def change(self, value: Tensor) -> Tensor:
        """Return a value, float32, with the decoded change of the latents added, wherever it is."""
        now = self.sae.encode(value.float().cpu())[..., self.latents]
        return value + ((self.values - now) @ self.sae.W_dec[self.latents]).detach().to(value)
