"""Rows of activations made of known sparse features, for tests of SAEs."""

from __future__ import annotations

import torch

N_ROWS, D_MODEL, N_TRUE = 600, 16, 24


def known_dictionary() -> torch.Tensor:
    """Return the features, rows of unit norm."""
    return torch.nn.functional.normalize(
        torch.randn(N_TRUE, D_MODEL, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def make_rows(seed: int = 1) -> torch.Tensor:
    """Return rows in which two features are active on average, about a common mean of 5."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(N_ROWS, N_TRUE, generator=generator) < 2 / N_TRUE
    latents = active * (1 + torch.rand(N_ROWS, N_TRUE, generator=generator))
    return 5.0 + latents @ known_dictionary()
