"""Interventions along directions of the residual stream: ablate, add, clamp.

    ablation    x' = x - a ((x - r) B^T) B    B: orthonormal rows; a = 1 takes all of it; r: what is left in its place
    addition    x' = x + c v                  v has a scale, e.g. that of the difference in means; at one layer
    clamping    x' = x + (b - x u) u          the projection on the unit vector u becomes b; at one layer

The published ablation has r = 0. Where the projection of prompts that are complied with is not near 0, that leaves the
model undecided instead of compliant; then r is what complied prompts have at the same place (`references`).

`steered` applies them while the model runs; when it ends, also by an error, every hook is gone. No weight is touched.
Directions may differ between the rows of a batch, so that many of them are tried in one pass. Arithmetic is in float32
at least, whatever the model's dtype.
Source: Arditi et al. arXiv 2406.11717, section 2.4 (ablation, addition); Marshall et al. arXiv 2411.09003 (r).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.interventions import Transform
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind
from refusal.steering.frame import Frame, Region

STREAM_START = -1
"""The layer of the embeddings, as they enter block 0."""
Place = Site | None
"""Where something is changed: a site, or None for the embeddings."""
Reference = Mapping[Place, Float[Tensor, "kind d_model"]]
"""What an ablation leaves in place of what it takes, by place and kind of position (`refusal.steering.frame`)."""
DEFAULT_FRAME = Frame()


class Intervention(Protocol):
    """Something that changes places of the model while it runs."""

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield each place that is changed and how; asked once for each time it is applied."""


@dataclass(frozen=True)
class Ablation:
    """Takes directions out of everything that is written to the residual stream, and out of the stream itself.

    At the embeddings and after every block, and at the outputs of attention and MLP: with the stream alone, the last
    block's writes would bring the direction back. Equals the published ablation, which works on block inputs and
    writers; that the last block's output is also changed here makes no difference where output = input + writers.
    """

    basis: Float[Tensor, "*row direction d_model"]
    """Orthonormal rows (see `orthonormal`); one set for all rows of a batch, or one for each."""
    reference: Reference | None = None
    """What is left; None: nothing, as published."""
    amount: float | Float[Tensor, "row 1 1"] = 1.0
    """Share of the projection that is taken: 0 changes nothing."""
    region: Region = Region.ALL
    places: Collection[Place] | None = None
    """Where to act; None: at the embeddings and every site."""

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the embeddings and every site of the stream, or the chosen ones."""
        basis = _ready(self.basis, model)
        for place in (None, *model.sites()) if self.places is None else self.places:
            left = None if self.reference is None else _ready(self.reference[place], model)
            yield place, within(self.region, frame, self._change(basis, left, frame))

    def _change(self, basis: Tensor, left: Tensor | None, frame: Frame) -> Transform:
        amount = self.amount.to(basis) if isinstance(self.amount, Tensor) else self.amount

        def change(value: Tensor) -> Tensor:
            """Take the directions' share of a value less what is to be left."""
            surplus = value if left is None else value - left.to(value.device)[frame.kinds(value)]
            there = basis.to(value.device)
            taken: Tensor = surplus @ there.mT @ there
            return value - (amount.to(value.device) if isinstance(amount, Tensor) else amount) * taken

        return change


@dataclass(frozen=True)
class Addition:
    """Adds a vector to the residual stream after one block."""

    vector: Float[Tensor, "*row d_model"]
    """With its scale; one for all rows of a batch, or `[row, 1, d_model]`."""
    layer: int
    """Block after which it is added; -1: at the embeddings."""
    coefficient: float | Float[Tensor, "row 1 1"] = 1.0
    """How many times it is added; negative: subtracted."""
    region: Region = Region.ALL

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the one place."""
        vector = _ready(self.vector, model)
        vector = vector * (self.coefficient.to(vector) if isinstance(self.coefficient, Tensor) else self.coefficient)
        yield stream_after(self.layer), within(self.region, frame, lambda value: value + vector.to(value.device))


@dataclass(frozen=True)
class Clamp:
    """Sets the projection of the residual stream on a direction to a value after one block."""

    unit: Float[Tensor, "*row d_model"]
    """Of length 1; one for all rows of a batch, or `[row, 1, d_model]`."""
    layer: int
    """Block after which it is set; -1: at the embeddings."""
    value: float | Float[Tensor, "row 1 1"]
    """In units of the residual stream."""
    region: Region = Region.ALL

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the one place."""
        yield stream_after(self.layer), within(self.region, frame, self.change)

    def change(self, value: Tensor) -> Tensor:
        """Return a value with its projection set, wherever it is."""
        return to_level(value, self.unit, self.value)


def to_level(
    value: Float[Tensor, "*rows d_model"], unit: Float[Tensor, "*#rows d_model"], level: float | Tensor
) -> Float[Tensor, "*rows d_model"]:
    """Return a value with its projection on unit vectors set to a level, in the value's precision."""
    there = unit.to(value)
    wanted = level.to(value) if isinstance(level, Tensor) else level
    missing: Tensor = wanted - (value * there).sum(-1, keepdim=True)
    return value + missing * there


def random_units(n: int, d_model: int, seed: int) -> Float[Tensor, "draw d_model"]:
    """Return random unit vectors, uniform over the sphere, float64: what any direction does."""
    drawn = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    units: Tensor = drawn / drawn.norm(dim=-1, keepdim=True)
    return units


def orthonormal(vectors: Float[Tensor, "direction d_model"]) -> Float[Tensor, "basis d_model"]:
    """Return an orthonormal basis of the span of vectors, in float64; parallel and zero vectors drop out.

    Raises:
        ValueError: All vectors are zero, or one is not finite.
    """
    if not torch.isfinite(vectors).all():
        raise ValueError("a direction is not finite")
    if not vectors.any():
        raise ValueError("the directions are all zero: they span nothing that could be taken out")
    _, sizes, rows = torch.linalg.svd(vectors.double(), full_matrices=False)
    basis: Tensor = rows[sizes > sizes.max() * 1e-9]
    return basis


@contextmanager
def steered(model: ChatModel, *interventions: Intervention, frame: Frame = DEFAULT_FRAME) -> Iterator[None]:
    """Apply interventions, in the order given, in every forward pass inside the `with`; the model is as before after.

    Generation is steered too: the hooks act on each decode step.
    """
    with ExitStack() as stack:
        for intervention in interventions:
            for place, change in intervention.changes(model, frame):
                on = model.on_stream_start(change) if place is None else model.on_site(place, change)
                stack.enter_context(on)
        yield


def stream_after(layer: int) -> Place:
    """Return the place of the residual stream after a block; after -1, the embeddings."""
    return None if layer == STREAM_START else Site(SiteKind.RESIDUALS, layer)


def _ready(tensor: Tensor, model: ChatModel) -> Tensor:
    """Return directions on the model's device in the precision of the arithmetic."""
    return tensor.to(device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))


def within(region: Region, frame: Frame, change: Transform) -> Transform:
    """Return a change, made in float32 at least, that keeps to a region and gives back the value's dtype."""

    def apply(value: Tensor) -> Tensor:
        """Change a value in the region of a pass."""
        changed = change(value.to(torch.promote_types(value.dtype, torch.float32))).to(value.dtype)
        chosen = frame.acts_on(region, frame.kinds(value))
        return changed if chosen is None else torch.where(chosen[..., None], changed, value)

    return apply
