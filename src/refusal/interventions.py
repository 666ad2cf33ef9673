"""Read and change sites while a model runs: hooks as context managers, always removed, also after an error.

A site's value is the output of a module, or the first entry when the output is a tuple. What is recorded is cloned:
some families go on writing into the tensor. Edits run in the order of depth. Hooks run in the order they are made, so a
recording opened inside an edit sees the edited values, and one opened before it the values as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from refusal.models import ChatModel, SiteUse
from refusal.sites import Site

Transform = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]
"""What an edit does to a site's value at all positions."""
Recording = dict[Site, Float[Tensor, "batch pos d_model"]]
"""Values of sites, filled anew by each forward pass."""
Kept = TypeVar("Kept")
Selection = Callable[[Float[Tensor, "batch pos d_model"]], Kept]
"""What of a site's value to keep, as a copy."""


@contextmanager
def record(model: ChatModel, sites: Collection[Site], *, last_only: bool = True) -> Iterator[Recording]:
    """Yield a mapping from each site to its value in the latest forward pass.

    Args:
        model: The model.
        sites: What to record.
        last_only: Keep the last position only, `[batch, 1, d_model]`: the readout position of left-padded prompts.
    """
    with record_rows(model, sites, lambda value: (value[:, -1:] if last_only else value).clone()) as recording:
        yield recording


@contextmanager
def record_rows(model: ChatModel, sites: Collection[Site], select: Selection[Kept]) -> Iterator[dict[Site, Kept]]:
    """Yield a mapping from each site to what `select` copied of its value in the latest forward pass."""
    recording: dict[Site, Kept] = {}

    def keep(site: Site) -> SiteUse:
        """Return what puts the site's value into the recording."""

        def use(value: Tensor) -> None:
            """Record a value; returns nothing, so the pass goes on unchanged."""
            recording[site] = select(value)

        return use

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(model.on_site(site, keep(site)))
        yield recording


@contextmanager
def edit(model: ChatModel, edits: Mapping[Site, Transform]) -> Iterator[None]:
    """Change the value of sites in every forward pass inside the `with`; the model is as before when it ends."""
    with ExitStack() as stack:
        for site in sorted(edits):
            stack.enter_context(model.on_site(site, edits[site]))
        yield
