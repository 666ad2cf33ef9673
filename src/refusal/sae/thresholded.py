"""SAEs whose latents are decided one by one: ReLU (`standard`) and JumpReLU, loaded and run; `objectives` trains them.

BatchTopK and Matryoshka SAEs are stored as JumpReLU with their inference threshold, so they load as such.
Source: Rajamanoharan et al. 2407.14435, equation 4 (JumpReLU).
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from refusal.sae.base import SparseAutoencoder, register


@register("standard")
class ReluSae(SparseAutoencoder):
    """latents = ReLU((x - b_dec) W_enc + b_enc)."""

    def activate(self, pre: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_sae"]:
        """Return the positive part."""
        return pre.relu()


@register("jumprelu")
class JumpReluSae(SparseAutoencoder):
    """latents = ReLU(pre) where pre > threshold (strictly), 0 elsewhere; one threshold per latent."""

    extra_tensors: ClassVar[tuple[str, ...]] = ("threshold",)
    threshold: nn.Parameter

    def activate(self, pre: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_sae"]:
        """Return the positive part where the threshold is exceeded."""
        return pre.relu() * (pre > self.threshold)
