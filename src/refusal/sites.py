"""Sites: the places of a model that can be read and written.

A site is the state of the residual stream after a block (`residuals_3`: output of block 3, before any final norm), what
a block writes to it (`attention_3`, `mlp_3`: the term that is added, after any post-norm), the outputs of a block's
attention heads (`heads_3`: side by side, before the output projection mixes them), or the hidden neurons of a block's
MLP (`neurons_3`: the input of its down-projection). Layers count from 0.
This module does not know where a model keeps a site: `refusal.models` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering

from refusal.errors import InputError

_NAME = re.compile(r"(residuals|mlp|attention|heads|neurons)_(0|[1-9][0-9]*)")


class SiteKind(StrEnum):
    """What is read at a site; the value is the word used in configurations and file names."""

    HEADS = "heads"
    """`z`: what each attention head has read, `[.., n_heads * d_head]` with the heads side by side, before the output
    projection."""
    ATTENTION = "attention"
    """`attn_out`: what the attention of a block adds to the residual stream."""
    NEURONS = "neurons"
    """Hidden neurons of a block's MLP, `[.., d_mlp]`: no SAE is needed, each neuron is a unit. Measured where the
    analysis needs it; not kept in the activation store."""
    MLP = "mlp"
    """`mlp_out`: what the MLP of a block adds to the residual stream."""
    RESIDUALS = "residuals"
    """`resid_post`: the residual stream after a block."""

    @property
    def is_writer(self) -> bool:
        """True for what is added to the residual stream."""
        return self in (SiteKind.ATTENTION, SiteKind.MLP)


STREAM_KINDS = (SiteKind.ATTENTION, SiteKind.MLP, SiteKind.RESIDUALS)
"""Kinds of width d_model, which can have SAEs."""
CAPTURED_KINDS = (SiteKind.HEADS, *STREAM_KINDS)
"""Kinds that the activation store can hold."""
_DEPTH_IN_BLOCK = {kind: depth for depth, kind in enumerate(SiteKind)}


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in the model, ordered by depth: heads, attention, neurons, MLP, residual stream, block by block."""

    kind: SiteKind
    layer: int

    @property
    def name(self) -> str:
        """The name used in configurations and file names.

        >>> Site(SiteKind.RESIDUALS, 3).name
        'residuals_3'
        """
        return f"{self.kind.value}_{self.layer}"

    @classmethod
    def parse(cls, name: str) -> Site:
        """Return the site of a name.

        >>> Site.parse("mlp_12")
        Site(kind=<SiteKind.MLP: 'mlp'>, layer=12)

        Raises:
            InputError: The name is not `residuals_N`, `mlp_N`, `attention_N`, `heads_N` or `neurons_N`.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f"no site is called {name!r}; allowed are residuals_N, mlp_N and attention_N, e.g. residuals_3"
            )
        return cls(SiteKind(match.group(1)), int(match.group(2)))

    def __lt__(self, other: Site) -> bool:
        return (self.layer, _DEPTH_IN_BLOCK[self.kind]) < (other.layer, _DEPTH_IN_BLOCK[other.kind])

    def __str__(self) -> str:
        return self.name


def expand(names: Sequence[str], n_layers: int) -> list[Site]:
    """Return the sites of names in order of depth; a kind alone means every layer.

    >>> [str(site) for site in expand(["mlp_1", "heads"], 2)]
    ['heads_0', 'heads_1', 'mlp_1']

    Raises:
        InputError: A name is neither a site nor a kind.
    """
    kinds = {kind.value: kind for kind in SiteKind}
    whole = all_sites(n_layers, tuple(kinds[name] for name in names if name in kinds))
    return sorted({*whole, *(Site.parse(name) for name in names if name not in kinds)})


def all_sites(n_layers: int, kinds: tuple[SiteKind, ...] = STREAM_KINDS) -> list[Site]:
    """Return the sites of a model with `n_layers` blocks in order of depth.

    >>> [str(site) for site in all_sites(1)]
    ['attention_0', 'mlp_0', 'residuals_0']
    """
    return sorted(Site(kind, layer) for layer in range(n_layers) for kind in kinds)
