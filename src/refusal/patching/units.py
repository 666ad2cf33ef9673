"""What is patched, which way, and with which values.

A pair's two prompts differ in what the model does: m(clean) > m(corrupted). A patch replaces activations of one run:

- **denoising** puts values into the corrupted run. score = (m_patched - m_corrupted) / (m_clean - m_corrupted): 0, the
  patch restores nothing of the refusal; 1, all of it. It asks what is *sufficient*.
- **noising** puts values into the clean run. The score is the same formula: 1, the refusal stays as it was; 0, all of
  it is gone. It asks what is *necessary*; the effect of a patch is then 1 - score.

So a score is 0 = as corrupted and 1 = as clean both ways, an effect is 0 = the patch does nothing, and neither is ever
clipped. Source: Meng et al. 2202.05262 (causal tracing), Heimersheim and Nanda 2404.15255 (denoising and noising).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from refusal.models import ChatModel
from refusal.patching.tokens import Place
from refusal.sites import Site, SiteKind, all_sites


class Side(StrEnum):
    """One of the two prompts of a pair."""

    CLEAN = "clean"
    """The prompt that is refused."""
    CORRUPTED = "corrupted"
    """The prompt that is complied with."""


class Mode(StrEnum):
    """Which run is patched."""

    DENOISE = "denoise"
    """The corrupted run, with values of the clean one."""
    NOISE = "noise"
    """The clean run, with values of the corrupted one."""

    @property
    def base(self) -> Side:
        """The side whose run is patched."""
        return Side.CORRUPTED if self is Mode.DENOISE else Side.CLEAN

    @property
    def source(self) -> Side:
        """The side that values come from."""
        return Side.CLEAN if self is Mode.DENOISE else Side.CORRUPTED


class Ablation(StrEnum):
    """Which values are put in."""

    COUNTERFACTUAL = "counterfactual"
    """Those of the other prompt of the pair."""
    MEAN = "mean"
    """The mean of the other side of other pairs, of the same category where it has any: never of the pair itself."""
    ZERO = "zero"
    """Zeros. They are far from anything the model sees, so an effect can be damage."""


@dataclass(frozen=True)
class Patch:
    """One way of patching."""

    mode: Mode
    ablation: Ablation = Ablation.COUNTERFACTUAL

    def __str__(self) -> str:
        return f"{self.mode}, {self.ablation}"


@dataclass(frozen=True)
class Unit:
    """What one patch replaces."""

    site: Site
    head: int | None
    """Number of the attention head at a `heads_N` site; None: the whole site."""
    place: Place
    latent: int | None = None
    """Number of the latent of the site's SAE; None: no latent."""

    @property
    def name(self) -> str:
        """Site and head or latent: `heads_3.1`, `residuals_2 #17`, `mlp_0`."""
        head = "" if self.head is None else f".{self.head}"
        return f"{self.site}{head}" if self.latent is None else f"{self.site} #{self.latent}"

    def __str__(self) -> str:
        return f"{self.name} at {self.place}"


KINDS = (SiteKind.RESIDUALS, SiteKind.MLP, SiteKind.ATTENTION, SiteKind.HEADS)
"""Kinds that can be patched, in the order in which they are shown."""


def layer_units(model: ChatModel, kind: SiteKind, places: Sequence[Place]) -> list[Unit]:
    """Return every layer of a kind at every place, layer by layer."""
    return [Unit(site, None, place) for site in all_sites(model.n_layers, (kind,)) for place in places]


def head_units(model: ChatModel, places: Sequence[Place]) -> list[Unit]:
    """Return every head of every layer at every place, layer by layer; blocks without separable heads are left out."""
    return [Unit(site, head, place) for site in model.head_sites() for head in range(model.n_heads) for place in places]


def slice_of(unit: Unit, width: int, n_heads: int) -> slice:
    """Return the entries of a site's value that a unit means.

    A head is `width / n_heads` entries, whatever d_model is; heads that share keys and values have their own outputs.

    >>> slice_of(Unit(Site.parse("heads_0"), 2, Place("-1")), 32, 4)
    slice(16, 24, None)
    """
    if unit.head is None:
        return slice(0, width)
    d_head = width // n_heads
    return slice(unit.head * d_head, (unit.head + 1) * d_head)


@dataclass(frozen=True)
class PatchedMetric:
    """m under every patch of a map."""

    patch: Patch
    units: tuple[Unit, ...]
    patched: Float[np.ndarray, "unit pair"]
    """m of the patched run, logits; nan where the place does not correspond in the pair."""
    clean: Float[np.ndarray, " pair"]
    """m of the clean run, logits."""
    corrupted: Float[np.ndarray, " pair"]
    """m of the corrupted run, logits."""

    @property
    def gap(self) -> Float[np.ndarray, " pair"]:
        """m_clean - m_corrupted, logits; positive."""
        return np.asarray(self.clean - self.corrupted)

    @property
    def score(self) -> Float[np.ndarray, "unit pair"]:
        """(m_patched - m_corrupted) / (m_clean - m_corrupted): 0 as corrupted, 1 as clean; not clipped."""
        return np.asarray((self.patched - self.corrupted) / self.gap)

    @property
    def change(self) -> Float[np.ndarray, "unit pair"]:
        """How far a patch moves m towards the other side, logits: m_patched - m_corrupted, or m_clean - m_patched."""
        if self.patch.mode is Mode.DENOISE:
            return np.asarray(self.patched - self.corrupted)
        return np.asarray(self.clean - self.patched)

    @property
    def effect(self) -> Float[np.ndarray, "unit pair"]:
        """The change as a share of the gap: the score of denoising, 1 - the score of noising."""
        return np.asarray(self.change / self.gap)

    def of(self, rows: Sequence[int]) -> PatchedMetric:
        """Return some of the units."""
        chosen = tuple(self.units[row] for row in rows)
        return PatchedMetric(self.patch, chosen, self.patched[list(rows)], self.clean, self.corrupted)
