"""A chat model and the way around it: prompts, readout position, sites. Nothing else knows architectures.

Where a family keeps a site is a row of `FAMILIES`, found by structure; there are no branches per family. What a block
adds to the residual stream is read after any post-norm (Gemma 2 and 3, OLMo 2). A model is checked when it loads
(`check_sites`): hooks see the shapes they should, editing any site changes the logits, and where output = input +
attention + MLP does not hold, a notice says so. How weights and tokenizer are found is in `refusal.loading`, how
a prompt is framed in `refusal.chat`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refusal import loading
from refusal.chat import ChatFrame
from refusal.errors import InputError
from refusal.loading import resolve, resolve_device, resolve_dtype
from refusal.sites import Site, SiteKind, all_sites

__all__ = [
    "FAMILIES",
    "ChatModel",
    "Family",
    "SiteUse",
    "TokenBatch",
    "additive_mask",
    "find_family",
    "resolve",
    "resolve_device",
    "resolve_dtype",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its blocks and what each block writes; names are attributes of the module above."""

    name: str
    blocks: str
    """Path from the causal model to its list of blocks."""
    attention: str
    """Path from a block to the module whose output is added to the stream by attention."""
    mlp: str
    """Path from a block to the module whose output is added by the MLP."""
    has_flat_mlp: bool = False
    """True where the MLP's input and output are `[batch * pos, width]`."""


SiteUse = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"] | None]
"""What is done with a site's value in a forward pass; a tensor that it returns takes the value's place."""

_PROBE_TOKENS = 6
"""Tokens of the prompt on which a model is checked."""

_SANDWICH = ("post_attention_layernorm", "post_feedforward_layernorm")
FAMILIES = (
    Family("sandwich norms (Gemma 2 and 3)", "model.layers", *_SANDWICH),
    Family("Llama-like", "model.layers", "self_attn", "mlp"),
    Family("Mixture of experts", "model.layers", "self_attn", "block_sparse_moe"),
    Family("Gemma 3 with vision", "model.language_model.layers", *_SANDWICH),
    Family("GPT-NeoX", "gpt_neox.layers", "attention", "mlp"),
    Family("GPT-2", "transformer.h", "attn", "mlp"),
    # BLOOM's attention and MLP modules return the residual stream too: what they add leaves their last projections.
    Family("Falcon, BLOOM", "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    Family("OPT", "model.decoder.layers", "self_attn", "fc2", has_flat_mlp=True),
)
_DOWN_PROJECTIONS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "fc2")
"""Paths from a block to the last projection of its MLP, whose inputs are the hidden neurons; a mixture has none."""


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded prompts."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    """1 where there is a token, 0 for padding."""
    position_ids: Int[Tensor, "batch pos"]
    """Position within the prompt; families with learned positions give wrong activations without it."""

    @property
    def is_token(self) -> Bool[Tensor, "batch pos"]:
        """True where there is a token of the prompt."""
        return self.attention_mask.bool()


def _walk(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def _down_projection(block: nn.Module) -> nn.Module | None:
    found = (_walk(block, path) for path in _DOWN_PROJECTIONS)
    return next((module for module in found if module is not None), None)


def find_family(model: nn.Module, name: str) -> tuple[Family, nn.ModuleList]:
    """Return the first family whose structure the model has, and its blocks.

    Raises:
        InputError: No known family fits.
    """
    for family in FAMILIES:
        blocks = _walk(model, family.blocks)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        if all(_walk(block, path) is not None for block in blocks for path in (family.attention, family.mlp)):
            return family, blocks
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(
        f"models: {name}: the structure of {type(model).__name__} is not known; known are {known}; "
        "add a row to FAMILIES in src/refusal/models.py that says where its blocks, attention and MLP are"
    )


class ChatModel:
    """A causal chat model and its tokenizer, frozen, in evaluation mode."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.notices: list[str] = []
        self.family, self._blocks = find_family(model, name)
        self._text_config = model.config.get_text_config()

    @classmethod
    def load(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> ChatModel:
        """Return a model by name.

        Args:
            name: `planted/NAME` (shipped), a local folder, or a hub id with an optional `@revision`.
            device: auto (CUDA, then Apple MPS, then CPU), cpu, cuda or mps.
            dtype: auto (float32 on CPU and MPS; bfloat16 on CUDA), float32, bfloat16 or float16.

        Raises:
            InputError: No such model, or it cannot be loaded; the message says what to do.
        """
        loaded = loading.load(name, device, dtype)
        model = cls(name, loaded.model, loaded.tokenizer)
        for notice in loaded.notices:
            model.add_notice(notice)
        model.check_sites()
        return model

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where token ids go."""
        return torch.device(self.model.get_input_embeddings().weight.device)

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
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self._text_config.vocab_size)

    @property
    def context_length(self) -> int | None:
        """Longest prompt and answer together, in tokens; None when the configuration names no limit."""
        length = getattr(self._text_config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the generation settings and the tokenizer's own."""
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset(int(token) for token in (*listed, self.tokenizer.eos_token_id) if token is not None)

    # Prompts ---------------------------------------------------------------------------------------------------------

    def render(self, prompt: str, system_prompt: str | None = None) -> str:
        """Return the text the model is given: chat template with the generation prompt, or the documented fallback."""
        return self._chat.render(prompt, system_prompt)

    def tokenize(self, prompts: Sequence[str], system_prompt: str | None = None) -> list[list[int]]:
        """Return the token ids of each prompt in its chat frame, with exactly one BOS where the tokenizer has one.

        Control tokens that a user wrote into a prompt are read as plain text: they do not end or begin a turn.
        """
        return self._chat.tokenize(prompts, system_prompt)

    @property
    def _chat(self) -> ChatFrame:
        return ChatFrame(self.name, self.tokenizer, self.add_notice)

    def pad(self, token_ids: Sequence[Sequence[int]]) -> TokenBatch:
        """Return prompts as one left-padded batch on the model's device."""
        longest = max(len(ids) for ids in token_ids)
        pad = self.tokenizer.pad_token_id
        filler = pad if pad is not None else next(iter(sorted(self.eos_token_ids)), 0)
        input_ids = torch.full((len(token_ids), longest), filler, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, longest - len(ids) :] = torch.tensor(list(ids), dtype=torch.long)
            mask[row, longest - len(ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return TokenBatch(*(tensor.to(self.device) for tensor in (input_ids, mask, positions)))

    # Sites -----------------------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Return every site in order of depth."""
        return all_sites(self.n_layers)

    def resolve_sites(self, names: str | Sequence[str]) -> list[Site]:
        """Return the sites of a configuration's `activation_layers` in order of depth.

        Args:
            names: `all` for every residuals_N, or names.

        Raises:
            InputError: A name is no site of this model; all such names are told at once.
        """
        if names == "all":
            return all_sites(self.n_layers, (SiteKind.RESIDUALS,))
        existing = {site.name: site for site in self.sites()}
        wrong = [name for name in names if name not in existing]
        if wrong:
            near = difflib.get_close_matches(wrong[0], existing, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            last = self.n_layers - 1
            raise InputError(
                f"activation_layers: {self.name} has no site {', '.join(map(repr, wrong))}; it has residuals_0 to "
                f"residuals_{last}, mlp_0 to mlp_{last}, attention_0 to attention_{last}{hint}"
            )
        return sorted(existing[name] for name in names)

    def neuron_sites(self) -> list[Site]:
        """Return the MLP neurons of every block in order of depth; those of a mixture of experts are left out."""
        sites = all_sites(self.n_layers, (SiteKind.NEURONS,))
        return [site for site in sites if _down_projection(self._blocks[site.layer]) is not None]

    def site_module(self, site: Site) -> nn.Module:
        """Return the module whose output (or its first entry) is the site's value; of neurons, whose input it is."""
        block = self._blocks[site.layer]
        if site.kind is SiteKind.RESIDUALS:
            return block
        if site.kind is SiteKind.NEURONS:
            projection = _down_projection(block)
            if projection is None:
                raise InputError(f"{self.name}: block {site.layer} has no single MLP whose neurons could be read")
            return projection
        module = _walk(block, self.family.attention if site.kind is SiteKind.ATTENTION else self.family.mlp)
        assert module is not None, site  # `find_family` has seen it in every block
        return module

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
            changed = use(value.unflatten(0, shape[0][:2]) if shape else value)
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
        if site.kind is SiteKind.NEURONS:
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

    # Checks ----------------------------------------------------------------------------------------------------------

    def check_sites(self) -> None:
        """Run one short prompt forward and backward and raise if a site is not what it should be.

        Raises:
            InputError: A site's value has another shape than `[batch, pos, d_model]`, or editing it leaves the logits
                as they are.
        """
        sites = self.sites()
        ids = torch.arange(_PROBE_TOKENS, device=self.device)[None] % self.vocab_size
        shifts = {site: torch.zeros(self.d_model, device=self.device, requires_grad=True) for site in sites}
        acts: dict[Site, Tensor] = {}

        def shift(site: Site) -> SiteUse:
            """Return what records a site's value and adds its shift."""

            def use(value: Tensor) -> Tensor:
                """Check the shape, record the value and add the shift, so that gradients show what the site does."""
                acts[site] = value.detach().clone()
                self._require(value.shape == (*ids.shape, self.d_model), site, f"its shape is {tuple(value.shape)}")
                return value + shifts[site].to(value)

            return use

        with torch.enable_grad(), ExitStack() as stack:
            for site in sites:
                stack.enter_context(self.on_site(site, shift(site)))
            logits = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
            weights = torch.randn(len(logits), generator=torch.Generator().manual_seed(0)).to(logits)
            gradients = torch.autograd.grad((logits * weights).sum(), list(shifts.values()), allow_unused=True)
        for site, gradient in zip(sites, gradients, strict=True):
            self._require(gradient is not None and bool(gradient.any()), site, "editing it leaves the logits unchanged")
        self._note_remainder(acts)

    def _require(self, holds: bool, site: Site, found: str) -> None:
        if not holds:
            raise InputError(
                f"models: {self.name}: {site} is not found where the family {self.family.name!r} keeps it: {found}; a "
                f"site is [batch, pos, {self.d_model}] and reaches the logits; add a row to FAMILIES in "
                "src/refusal/models.py for this architecture"
            )

    def _note_remainder(self, acts: dict[Site, Float[Tensor, "batch pos d_model"]]) -> None:
        """Say so where a block's output is not its input + attention + MLP."""
        worst = 0.0
        for layer in range(1, self.n_layers):
            before, *terms, after = (
                acts[site].float()
                for site in (
                    Site(SiteKind.RESIDUALS, layer - 1),
                    Site(SiteKind.ATTENTION, layer),
                    Site(SiteKind.MLP, layer),
                    Site(SiteKind.RESIDUALS, layer),
                )
            )
            written = after - before
            worst = max(worst, float((sum(terms) - written).norm() / written.norm().clamp_min(1e-30)))
        if worst > (1e-3 if self.dtype == torch.float32 else 0.1):
            self.add_notice(
                f"a block's output is not its input + attention + MLP (off by up to {worst:.0%} of what is written): "
                "attention and MLP sites are scaled or normed before they reach the residual stream"
            )

    @cached_property
    def masks_per_query(self) -> bool:
        """Whether attention obeys a mask of its own for each query, `[batch, 1, query, key]`; tried, not assumed.

        Two variants of a prompt's last token run side by side, each masked from the other, and as two prompts. Models
        with ALiBi, for example, need the plain mask.
        """
        if getattr(self._text_config, "_attn_implementation", None) not in ("eager", "sdpa"):
            return False
        ids = torch.arange(_PROBE_TOKENS, device=self.device) % self.vocab_size
        positions = torch.arange(_PROBE_TOKENS, device=self.device).clamp_max(_PROBE_TOKENS - 2)
        allowed = torch.ones(_PROBE_TOKENS, _PROBE_TOKENS, device=self.device).tril().bool()
        allowed[-1, -2] = False
        alone = torch.cat([ids[:-2], ids[-1:]])
        with torch.no_grad():
            wanted = self.model(input_ids=alone[None], use_cache=False).logits[0, -1].float()
            try:
                found = self.model(
                    input_ids=ids[None],
                    attention_mask=additive_mask(allowed[None], self.dtype),
                    position_ids=positions[None],
                    use_cache=False,
                ).logits[0, -1]
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                log.info("%s: takes no mask per query (%s)", self.name, error)
                return False
        tolerance = 1e-4 if self.dtype == torch.float32 else 0.05
        return bool((found.float() - wanted).norm() <= tolerance * wanted.norm())

    def add_notice(self, text: str) -> None:
        """Keep a sentence that the result files will show, and log it once."""
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s: %s", self.name, text)


def additive_mask(allowed: Bool[Tensor, "batch query key"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
    """Return what attention adds to its scores: 0 where a query may look, the most negative number elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)
