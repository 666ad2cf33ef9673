"""Conditional steering: an intervention that acts only where a projection exceeds a threshold.

    where x u > t at the gate's layer, do the action; elsewhere nothing

Per prompt, the gate is decided once, at the prompt's last token, and holds for its whole answer, as in conditional
activation steering, whether the answer comes token by token or stands behind the prompt in one pass; text without a
prompt is decided at its last token. Per position, each token decides for itself.
Source: Lee et al. arXiv 2409.05907, who compare the cosine with the condition vector; here it is the projection, which
has the scale of the activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.interventions import Transform
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind
from refusal.steering.directional import Intervention, Place
from refusal.steering.frame import Frame


@dataclass(frozen=True)
class Gate:
    """The condition."""

    unit: Float[Tensor, " d_model"]
    """Of length 1."""
    layer: int
    """Block after which the projection is read."""
    threshold: float
    """In units of the residual stream; the gate opens above it."""
    decides: Literal["prompt", "position"] = "prompt"
    """Whether the prompt's last token decides for the whole answer, or each position for itself."""

    @property
    def site(self) -> Site:
        """Where the projection is read."""
        return Site(SiteKind.RESIDUALS, self.layer)


@dataclass(frozen=True)
class Gated:
    """An intervention behind a gate."""

    gate: Gate
    action: Intervention

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the gate, then every change of the action, let through where the gate is open.

        Raises:
            ValueError: The action changes a place before the gate, which is passed when the gate decides.
        """
        state = _State(self.gate, frame)
        yield self.gate.site, state.decide
        for place, change in self.action.changes(model, frame):
            if place is None or place < self.gate.site:
                raise ValueError(
                    f"the gate at {self.gate.site} comes after {place or 'the embeddings'}, which the action changes; "
                    "gate earlier, or let the action begin at the gate's layer"
                )
            yield place, state.behind(change)


class _State:
    """Where the gate is open in the current pass."""

    def __init__(self, gate: Gate, frame: Frame) -> None:
        self.gate = gate
        self.frame = frame
        self.is_open: Bool[Tensor, "batch pos_or_1"] = torch.zeros(0, 1, dtype=torch.bool)

    def decide(self, value: Tensor) -> Tensor:
        """Compare the projections of a pass with the threshold; the value goes on as it is."""
        is_decode_step = value.shape[1] == 1 and len(self.is_open) == len(value)
        if not (self.gate.decides == "prompt" and is_decode_step):
            read = self._prompts_last(value) if self.gate.decides == "prompt" else value
            self.is_open = read.float() @ self.gate.unit.to(value.device, torch.float32) > self.gate.threshold
        return value

    def _prompts_last(self, value: Tensor) -> Tensor:
        """Return the prompt's last token, which is not the last of a pass that holds the answer too."""
        if self.frame.given is None:
            return value[:, -1:]
        is_readout = self.frame.kinds(value) == self.frame.readout
        columns = torch.where(is_readout.any(1), is_readout.int().argmax(1), value.shape[1] - 1)
        return value[torch.arange(len(value), device=value.device), columns][:, None]

    def behind(self, change: Transform) -> Transform:
        """Return a change that acts where the gate is open."""

        def apply(value: Tensor) -> Tensor:
            """Change a value where the gate is open."""
            return torch.where(self.is_open.to(value.device)[..., None], change(value), value)

        return apply
