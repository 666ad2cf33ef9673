"""Read and change sites while a model runs: hooks as context managers, always removed, also after an error.

A site's value is the output of a module, or the first entry when the output is a tuple. What is recorded is cloned:
some families go on writing into the tensor. Edits run in the order of depth, and a recording made in the same `with`
sees the edited values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from refusal.models import ChatModel
from refusal.sites import Site

Transform = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]
"""What an edit does to a site's value at all positions."""
Recording = dict[Site, Float[Tensor, "batch pos d_model"]]
"""Values of sites, filled anew by each forward pass."""


def _value(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


@contextmanager
def record(model: ChatModel, sites: Collection[Site], *, last_only: bool = True) -> Iterator[Recording]:
    """Yield a mapping from each site to its value in the latest forward pass.

    Args:
        model: The model.
        sites: What to record.
        last_only: Keep the last position only, `[batch, 1, d_model]`: the readout position of left-padded prompts.
    """
    recording: Recording = {}

    def keep(site: Site) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = _value(output)
            recording[site] = (value[:, -1:] if last_only else value).clone()

        return hook

    with ExitStack() as stack:
        for site in sites:
            stack.callback(model.site_module(site).register_forward_hook(keep(site)).remove)
        yield recording


@contextmanager
def edit(model: ChatModel, edits: Mapping[Site, Transform]) -> Iterator[None]:
    """Change the value of sites in every forward pass inside the `with`; the model is as before when it ends."""

    def change(transform: Transform) -> Callable[[Any, Any, Any], Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            changed = transform(_value(output))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        for site in sorted(edits):
            stack.callback(model.site_module(site).register_forward_hook(change(edits[site])).remove)
        yield
