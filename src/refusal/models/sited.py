"""The sites of a model: which there are, which module holds each, and hooks on them.

How its prompts are framed and run is in `chat_model`, where an architecture keeps what in `families`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.errors import InputError
from refusal.models.families import (
    ATTENTION_PROJECTIONS,
    DOWN_PROJECTIONS,
    FINAL_NORMS,
    READ_BEFORE,
    find_family,
    first_of,
    walk,
)
from refusal.sites import Site, SiteKind, all_sites, expand
from refusal.weights import device_of

log = logging.getLogger(__name__)

SiteUse = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"] | None]
"""What is done with a site's value in a forward pass; a tensor that it returns takes the value's place."""


class SitedModel:
    """A causal model, frozen, in evaluation mode, with the sites of its blocks.

    Args:
        name: What messages call it.
        model: As transformers loads it.

    Raises:
        InputError: Its structure is not known.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.notices: list[str] = []
        self.family, self._blocks = find_family(model, name)
        self._text_config = model.config.get_text_config()
        if self.family.is_guess:
            self.add_notice(f"{type(model).__name__} is of no known family; taken are {self.family.name}")

    def add_notice(self, text: str) -> None:
        """Keep a sentence that the result files will show, and log it once."""
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s: %s", self.name, text)

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where token ids go."""
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return torch.get_default_dtype() if self.model.dtype is None else self.model.dtype

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._text_config.hidden_size)

    @property
    def n_heads(self) -> int:
        """Attention heads of a block; those that share keys and values are counted one by one."""
        return int(self._text_config.num_attention_heads)

    def sites(self) -> list[Site]:
        """Return every site of width d_model in order of depth."""
        return all_sites(self.n_layers)

    def head_sites(self) -> list[Site]:
        """Return the attention heads of every block in order of depth; blocks without separable heads are left out."""
        sites = all_sites(self.n_layers, (SiteKind.HEADS,))
        return [site for site in sites if first_of(self._blocks[site.layer], ATTENTION_PROJECTIONS) is not None]

    @torch.no_grad()
    def head_weights(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        """Return `W_O` of a block: what each head writes is its output times its matrix, before any post-norm.

        Raises:
            InputError: The block's attention has no output projection that reads the heads side by side.
        """
        site = Site(SiteKind.HEADS, layer)
        projection = self.site_module(site)
        rows = torch.eye(self.width(site), device=next(projection.parameters()).device, dtype=self.dtype)
        written: Tensor = projection(rows) - projection(torch.zeros_like(rows))  # whatever way it keeps its weights
        by_head: Tensor = written.unflatten(0, (self.n_heads, -1))
        return by_head

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last residual state and the logits.

        Raises:
            InputError: The module that holds the blocks has none of the names that final norms have.
        """
        holder = walk(self.model, self.family.blocks.rpartition(".")[0])
        found = None if holder is None else first_of(holder, FINAL_NORMS)
        if found is None:
            raise InputError(
                f"{self.name}: no final norm is found beside {self.family.blocks} (by the names "
                f"{', '.join(FINAL_NORMS)}); "
                "add its name to FINAL_NORMS in src/refusal/models/families.py"
            )
        return found

    def attention_post_norm(self, layer: int) -> nn.Module | None:
        """Return the norm between a block's attention and the residual stream; None where there is none."""
        attention = self.site_module(Site(SiteKind.ATTENTION, layer))
        projection = self.site_module(Site(SiteKind.HEADS, layer))
        return None if any(module is projection for module in attention.modules()) else attention

    def resolve_sites(self, names: str | Sequence[str]) -> list[Site]:
        """Return the sites of a configuration's `activation_layers` in order of depth.

        Args:
            names: `all` for every residuals_N, or names.

        Raises:
            InputError: A name is no site of this model; all such names are told at once.
        """
        if names == "all":
            return all_sites(self.n_layers, (SiteKind.RESIDUALS,))
        return self._existing("activation_layers", names, self.sites())

    def resolve_extra_sites(self, names: Sequence[str]) -> list[Site]:
        """Return the sites of a configuration's `capture.sites` in order of depth; a kind alone means every layer.

        Raises:
            InputError: A name is no site that can be captured from this model; all such names are told at once.
        """
        existing = sorted([*self.sites(), *self.head_sites()])
        return self._existing("capture.sites", [site.name for site in expand(names, self.n_layers)], existing)

    def _existing(self, key: str, names: Sequence[str], sites: Sequence[Site]) -> list[Site]:
        existing = {site.name: site for site in sites}
        wrong = [name for name in names if name not in existing]
        if wrong:
            near = difflib.get_close_matches(wrong[0], existing, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            kinds = dict.fromkeys(reversed([site.kind.value for site in sites]))
            ranges = ", ".join(f"{kind}_0 to {kind}_{self.n_layers - 1}" for kind in kinds)
            raise InputError(f"{key}: {self.name} has no site {', '.join(map(repr, wrong))}; it has {ranges}{hint}")
        return sorted(existing[name] for name in names)

    def neuron_sites(self) -> list[Site]:
        """Return the MLP neurons of every block in order of depth; those of a mixture of experts are left out."""
        sites = all_sites(self.n_layers, (SiteKind.NEURONS,))
        return [site for site in sites if first_of(self._blocks[site.layer], DOWN_PROJECTIONS) is not None]

    def site_module(self, site: Site) -> nn.Module:
        """Return the module whose output (or its first entry) is the site's value; of heads and neurons, its input."""
        block = self._blocks[site.layer]
        if site.kind is SiteKind.RESIDUALS:
            return block
        if site.kind in READ_BEFORE:
            paths, said = READ_BEFORE[site.kind]
            projection = first_of(block, paths)
            if projection is None:
                raise InputError(f"{self.name}: block {site.layer} has no {said} could be read")
            return projection
        module = walk(block, self.family.attention if site.kind is SiteKind.ATTENTION else self.family.mlp)
        assert module is not None, site  # `find_family` has seen it in every block
        return module

    def width(self, site: Site) -> int:
        """Return the width of a site: d_model, n_heads * d_head of heads, d_mlp of neurons."""
        if site.kind not in READ_BEFORE:
            return self.d_model
        weight = next(self.site_module(site).parameters())
        return weight.numel() // self.d_model

    def module_name(self, site: Site) -> str:
        """Return the path of a site's module in the Hugging Face model, e.g. `model.layers.3`."""
        module = self.site_module(site)
        return next(str(name) for name, each in self.model.named_modules() if each is module)

    def on_site(self, site: Site, use: SiteUse) -> ExitStack:
        """Call `use` with the site's value in every forward pass until the returned stack is closed.

        Prefer `refusal.interventions`, whose context managers cannot be left open.
        """
        shape: list[torch.Size] = []

        def note_shape(module: Any, args: Any, kwargs: Any) -> None:
            """Keep `[batch, pos, d_model]` of the block's input, which a flat MLP no longer shows."""
            shape[:] = [(args[0] if args else kwargs["hidden_states"]).shape]

        def used(value: Tensor) -> Tensor | None:
            """Return the edited value in the module's own shape; `None`: it stays."""
            is_flat = bool(shape) and value.dim() == 2
            changed = use(value.unflatten(0, shape[0][:2]) if is_flat else value)
            return None if changed is None else changed.reshape(value.shape).contiguous()

        def on_output(module: Any, args: Any, output: Any) -> Any:
            """Edit the module's output, or the first of its outputs."""
            changed = used(output[0] if isinstance(output, tuple) else output)
            return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

        def on_input(module: Any, args: Any) -> Any:
            """Edit the module's first input."""
            changed = used(args[0])
            return None if changed is None else (changed, *args[1:])

        hooks = ExitStack()
        if self.family.has_flat_mlp and site.kind in (SiteKind.MLP, SiteKind.NEURONS):
            before = self._blocks[site.layer].register_forward_pre_hook(note_shape, with_kwargs=True)
            hooks.callback(before.remove)
        module = self.site_module(site)
        if site.kind in READ_BEFORE:
            hooks.callback(module.register_forward_pre_hook(on_input).remove)
        else:
            hooks.callback(module.register_forward_hook(on_output).remove)
        return hooks

    def on_stream_start(self, use: SiteUse) -> ExitStack:
        """Call `use` with the input of block 0 (the embeddings, as they enter the residual stream) in every pass.

        It is no site: nothing is captured or trained there. Directions that are taken out of the whole stream are taken
        out here too. The rest is as for `on_site`.
        """

        def on_input(module: Any, args: Any, kwargs: Any) -> Any:
            """Edit the hidden states, which some families pass by name."""
            changed = use(args[0] if args else kwargs["hidden_states"])
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        hooks = ExitStack()
        hooks.callback(self._blocks[0].register_forward_pre_hook(on_input, with_kwargs=True).remove)
        return hooks
