"""A chat model and the way around it: prompts, readout position, sites. Nothing else knows architectures.

Where a family keeps a site is a row of `FAMILIES`, found by structure; there are no branches per family. What a block
adds to the residual stream is read after any post-norm (Gemma 2 and 3, OLMo 2, GLM 4). A model that fits no row is
tried by the names of its parts. Every model is checked when it loads (`refusal.model_checks`). How weights and
tokenizer are found is in `refusal.loading`, how a prompt is framed in `refusal.chat`.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refusal import loading, model_checks
from refusal.chat import ChatFrame
from refusal.errors import InputError, RefusalError
from refusal.loading import DeviceMap, resolve, resolve_device, resolve_dtype
from refusal.resources import is_out_of_memory
from refusal.sites import Site, SiteKind, all_sites, expand
from refusal.untrusted import first_line
from refusal.weights import device_of

__all__ = [
    "FAMILIES",
    "ChatModel",
    "Family",
    "SiteUse",
    "TokenBatch",
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
    """True where the MLP's input and output may be `[batch * pos, width]`."""
    is_guess: bool = False
    """True where the paths were found by the names of a model's parts."""


SiteUse = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"] | None]
"""What is done with a site's value in a forward pass; a tensor that it returns takes the value's place."""

_SANDWICH = ("post_attention_layernorm", "post_feedforward_layernorm")
FAMILIES = (
    Family("post-norms (Gemma 2 and 3, OLMo 2)", "model.layers", *_SANDWICH),
    Family("post-norms (GLM 4)", "model.layers", "post_self_attn_layernorm", "post_mlp_layernorm"),
    Family("Llama-like", "model.layers", "self_attn", "mlp"),
    Family("Mixture of experts", "model.layers", "self_attn", "block_sparse_moe"),
    Family("Gemma 3 with vision", "model.language_model.layers", *_SANDWICH),
    Family("GPT-NeoX", "gpt_neox.layers", "attention", "mlp"),
    Family("GPT-2", "transformer.h", "attn", "mlp"),
    # BLOOM's attention and MLP modules return the residual stream too: what they add leaves their last projections.
    Family("Falcon, BLOOM", "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    Family("OPT", "model.decoder.layers", "self_attn", "fc2", has_flat_mlp=True),
)
_ATTENTION_PROJECTIONS = (
    *("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attention.dense", "self_attention.dense"),
    *("attn.c_proj", "attn.out_proj", "attn.attention.out_proj"),
)
"""Paths from a block to the output projection of its attention, whose inputs are the heads, side by side."""
_DOWN_PROJECTIONS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "fc2")
"""Paths from a block to the last projection of its MLP, whose inputs are the hidden neurons; a mixture has none."""
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
"""Names of the norm after the last block, beside the list of blocks."""
_READ_BEFORE = {
    SiteKind.HEADS: (_ATTENTION_PROJECTIONS, "attention whose heads"),
    SiteKind.NEURONS: (_DOWN_PROJECTIONS, "single MLP whose neurons"),
}
"""Kinds that are the input of a projection: where it may be, and what is said of a block without one."""


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


def _first_of(block: nn.Module, paths: Sequence[str]) -> nn.Module | None:
    found = (_walk(block, path) for path in paths)
    return next((module for module in found if module is not None), None)


def find_family(model: nn.Module, name: str) -> tuple[Family, nn.ModuleList]:
    """Return the first family whose structure the model has, or else what the names of its parts suggest; its blocks.

    Raises:
        InputError: No known family fits, and the names of its parts suggest none.
    """
    for family in (*FAMILIES, *_guesses(model)):
        blocks = _walk(model, family.blocks)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        if all(_walk(block, path) is not None for block in blocks for path in (family.attention, family.mlp)):
            return family, blocks
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(
        f"models: {name}: the structure of {type(model).__name__} is not known, and it has no list of blocks with one "
        f"part named like an attention and one like an MLP each; known are {known}; use a decoder of one of these, or "
        "add a row to FAMILIES in src/refusal/models.py that says where its blocks, attention and MLP are"
    )


_ATTENTION_NAME = re.compile(r"(?!.*(norm|drop))(.*_)?(self_)?(attn|attention)(_.*)?")
_MLP_NAME = re.compile(r"(?!.*(norm|drop))(.*_)?(mlp|ffn|feed_forward|feedforward|moe|fc2)(_.*)?")


def _guesses(model: nn.Module) -> Iterator[Family]:
    """Yield families that would fit the model's lists of blocks by the names of a block's parts, longest list first.

    `ChatModel.check_sites` says whether a guess is right.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    for path, blocks in sorted(lists, key=lambda each: -len(each[1])):
        names = [name for name, _ in blocks[0].named_children()]
        attention, mlp = ([name for name in names if made.fullmatch(name)] for made in (_ATTENTION_NAME, _MLP_NAME))
        if len(attention) == len(mlp) == 1:
            said = f"blocks {path}, attention {attention[0]}, MLP {mlp[0]} (by their names)"
            yield Family(said, path, attention[0], mlp[0], has_flat_mlp=mlp[0] == "fc2", is_guess=True)


class ChatModel:
    """A causal chat model and its tokenizer, frozen, in evaluation mode."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.notices: list[str] = []
        self.family, self._blocks = find_family(model, name)
        self._text_config = model.config.get_text_config()
        if self.family.is_guess:
            self.add_notice(f"{type(model).__name__} is of no known family; taken are {self.family.name}")

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        device_map: DeviceMap = None,
        trust_remote_code: bool = False,
    ) -> ChatModel:
        """Return a model by name.

        Args:
            name: `planted/NAME` (shipped), a local folder, or a hub id with an optional `@revision`.
            device: auto (CUDA, then Apple MPS, then CPU), cpu, cuda or mps.
            dtype: auto (float32 on CPU and MPS; bfloat16 on CUDA), float32, bfloat16 or float16.
            device_map: As `loading.load` takes it; None: all of the model is on `device`.
            trust_remote_code: Whether Python code that comes with the model may run.

        Raises:
            InputError: No such model, or it cannot be loaded; the message says what to do.
        """
        loaded = loading.load(name, device, dtype, device_map, trust_remote_code=trust_remote_code)
        try:
            model = cls(name, loaded.model, loaded.tokenizer)
            for notice in loaded.notices:
                model.add_notice(notice)
            model.tokenize(["a"])
            log.debug("%s: context %s, ends %s", name, model.context_length, sorted(model.eos_token_ids))
            model.check_sites()
        except RefusalError:
            raise
        except Exception as error:  # what comes of settings that the libraries took unchecked
            if is_out_of_memory(error):
                raise
            log.debug("%s: cannot be used", name, exc_info=True)
            raise InputError(
                f"models: {name}: its files do not fit together ({type(error).__name__}: {first_line(error)}); get the "
                "whole model anew (-v shows where it was found)"
            ) from error
        return model

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

        Raises:
            InputError: The tokenizer is of another model: it gives tokens that the model does not have.
        """
        found = self._chat.tokenize(prompts, system_prompt)
        rows = self.model.get_input_embeddings().weight.shape[0]
        largest = max((max(ids, default=0) for ids in found), default=0)
        if largest >= rows:
            raise InputError(
                f"models: {self.name}: its tokenizer gives token {largest}, and it has embeddings for 0 to {rows - 1}; "
                "get tokenizer and weights of the same model"
            )
        return found

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

    def forward(self, tokens: TokenBatch, *, logits_to_keep: int = 1, **arguments: Any) -> Any:
        """Run a batch of prompts once, without a cache, and return what transformers returns.

        Args:
            tokens: The prompts.
            logits_to_keep: Last positions whose logits are computed; `logits` is `[batch, logits_to_keep, vocab]`.
            arguments: More arguments of the model, e.g. `output_attentions`.
        """
        return self.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
            use_cache=False,
            logits_to_keep=logits_to_keep,
            **arguments,
        )

    # Sites -----------------------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Return every site of width d_model in order of depth."""
        return all_sites(self.n_layers)

    def head_sites(self) -> list[Site]:
        """Return the attention heads of every block in order of depth; blocks without separable heads are left out."""
        sites = all_sites(self.n_layers, (SiteKind.HEADS,))
        return [site for site in sites if _first_of(self._blocks[site.layer], _ATTENTION_PROJECTIONS) is not None]

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
        holder = _walk(self.model, self.family.blocks.rpartition(".")[0])
        found = None if holder is None else _first_of(holder, _FINAL_NORMS)
        if found is None:
            raise InputError(
                f"{self.name}: no final norm is found beside {self.family.blocks} (by the names "
                f"{', '.join(_FINAL_NORMS)}); "
                "add its name to _FINAL_NORMS in src/refusal/models.py"
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
        return [site for site in sites if _first_of(self._blocks[site.layer], _DOWN_PROJECTIONS) is not None]

    def site_module(self, site: Site) -> nn.Module:
        """Return the module whose output (or its first entry) is the site's value; of heads and neurons, its input."""
        block = self._blocks[site.layer]
        if site.kind is SiteKind.RESIDUALS:
            return block
        if site.kind in _READ_BEFORE:
            paths, said = _READ_BEFORE[site.kind]
            projection = _first_of(block, paths)
            if projection is None:
                raise InputError(f"{self.name}: block {site.layer} has no {said} could be read")
            return projection
        module = _walk(block, self.family.attention if site.kind is SiteKind.ATTENTION else self.family.mlp)
        assert module is not None, site  # `find_family` has seen it in every block
        return module

    def width(self, site: Site) -> int:
        """Return the width of a site: d_model, n_heads * d_head of heads, d_mlp of neurons."""
        if site.kind not in _READ_BEFORE:
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
        if site.kind in _READ_BEFORE:
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
        """Raise if a site is not what it should be (`refusal.model_checks`).

        Raises:
            InputError: A site has another shape than it should, or editing it leaves the logits as they are.
        """
        model_checks.check_sites(self)

    @cached_property
    def masks_per_query(self) -> bool:
        """Whether attention obeys a mask of its own for each query, `[batch, 1, query, key]`; tried, not assumed."""
        if getattr(self._text_config, "_attn_implementation", None) not in ("eager", "sdpa"):
            return False
        return model_checks.masks_per_query(self)

    def add_notice(self, text: str) -> None:
        """Keep a sentence that the result files will show, and log it once."""
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s: %s", self.name, text)
