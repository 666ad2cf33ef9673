"""Sparse autoencoders (SAEs): one per site turns activations into latents, the nodes of circuits.

`load` and `SparseAutoencoder.save` read and write them, `refusal.sae.training` trains those of a model, `metrics` says
how good they are. Architectures: `topk` (trained and loaded), `standard` and `jumprelu` (loaded).
"""

from refusal.sae.base import Provenance, SaeOutput, SparseAutoencoder
from refusal.sae.formats import load, save
from refusal.sae.thresholded import JumpReluSae, ReluSae
from refusal.sae.topk import TopKSae

__all__ = ["JumpReluSae", "Provenance", "ReluSae", "SaeOutput", "SparseAutoencoder", "TopKSae", "load", "save"]
