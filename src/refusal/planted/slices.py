"""Read and swap MLP neurons at the readout position while a planted model runs; always undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Neurons = dict[int, Float[Tensor, "prompt neuron"]]
"""Hidden MLP activations at the readout position, by layer."""


@dataclass(frozen=True)
class Swap:
    """Neurons of one layer that take given values at the readout position."""

    layer: int
    values: Float[Tensor, "prompt neuron"]
    chosen: Bool[Tensor, "prompt neuron"]


@contextmanager
def recorded(model: Any, layers: tuple[int, ...], position: int) -> Iterator[Neurons]:
    """Yield the neurons of the latest forward pass; gradients flow through them."""
    found: Neurons = {}

    def hook(layer: int) -> Any:
        def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
            found[layer] = inputs[0][:, position]

        return keep

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(hook(layer)).remove)
        yield found


@contextmanager
def swapped(model: Any, swap: Swap, position: int) -> Iterator[None]:
    """Run with the chosen neurons set to the given values."""

    def change(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        acts = inputs[0].clone()
        acts[:, position] = torch.where(swap.chosen, swap.values, inputs[0][:, position])
        return (acts,)

    handle = model.model.layers[swap.layer].mlp.down_proj.register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


def neurons_of(
    slices: tuple[tuple[int, int], ...], groups: Bool[Tensor, "prompt group"], d_mlp: int
) -> Bool[Tensor, "prompt neuron"]:
    """Return the neurons of the chosen groups' slices."""
    chosen = torch.zeros(len(groups), d_mlp, dtype=torch.bool)
    for group, (first, last) in enumerate(slices):
        chosen[:, first:last] = groups[:, group : group + 1]
    return chosen
