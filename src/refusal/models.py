"""Load a chat model and find its way around: chat template, readout position, sites. Nothing else knows architectures.

Where a family keeps a site is a row of `FAMILIES`, found by structure; there are no branches per family. What a block
adds to the residual stream is read after any post-norm (Gemma 2 and 3, OLMo 2). A model is checked when it loads: the
hooks see the shapes they should, and where the family allows it, output = input + attention + MLP.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from refusal import embedded
from refusal.errors import InputError
from refusal.sites import Site, SiteKind, all_sites

log = logging.getLogger(__name__)

FALLBACK_TEMPLATE = "{system}User: {prompt}\nAssistant:"
"""Used, and said, when a tokenizer has no chat template; `system`: the system prompt and an empty line, or nothing."""


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


FAMILIES = (
    Family("sandwich norms (Gemma 2 and 3)", "model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    Family("Llama-like", "model.layers", "self_attn", "mlp"),
    Family("Mixture of experts", "model.layers", "self_attn", "block_sparse_moe"),
    Family(
        "Gemma 3 with vision", "model.language_model.layers", "post_attention_layernorm", "post_feedforward_layernorm"
    ),
    Family("GPT-NeoX", "gpt_neox.layers", "attention", "mlp"),
    Family("GPT-2", "transformer.h", "attn", "mlp"),
    Family("Falcon, BLOOM", "transformer.h", "self_attention", "mlp"),
)


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
        source, revision = resolve(name)
        chosen = resolve_device(device)
        transformers_logging.disable_progress_bar()
        arguments = {"revision": revision, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(source, **arguments)
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **arguments)
            model = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=resolve_dtype(dtype, chosen), **arguments
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"models: {name}: cannot be loaded: {first_line}; allowed are {', '.join(embedded.model_names())}, a "
                "folder with config.json, *.safetensors and a tokenizer, or a hub id that is in the local cache "
                f"(hf download {name})"
            ) from error
        return cls(name, model.to(chosen), tokenizer)

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
        """Tokens that end an answer."""
        found = self.model.generation_config.eos_token_id
        if found is None:
            found = self.tokenizer.eos_token_id
        listed = [] if found is None else found if isinstance(found, list) else [found]
        return frozenset(int(token) for token in listed)

    # Prompts ---------------------------------------------------------------------------------------------------------

    def render(self, prompt: str, system_prompt: str | None = None) -> str:
        """Return the text the model is given: chat template with the generation prompt, or the documented fallback."""
        if self.tokenizer.chat_template is None:
            self._notice("the tokenizer has no chat template; prompts are framed as 'User: ...' and 'Assistant:'")
            system = "" if system_prompt is None else f"{system_prompt}\n\n"
            return (self.tokenizer.bos_token or "") + FALLBACK_TEMPLATE.format(system=system, prompt=prompt)
        turns = [{"role": "user", "content": prompt}]
        if system_prompt is not None:
            with_system = [{"role": "system", "content": system_prompt}, *turns]
            rendered = self._apply(with_system)
            if rendered is not None and system_prompt in rendered:
                return rendered
            self._notice("the chat template takes no system prompt; it is put before the user's text")
            turns = [{"role": "user", "content": f"{system_prompt}\n\n{prompt}"}]
        rendered = self._apply(turns)
        if rendered is None:
            raise InputError(f"models: {self.name}: the chat template fails on a single user turn; check its tokenizer")
        return rendered

    def _apply(self, turns: list[dict[str, str]]) -> str | None:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            return None

    def tokenize(self, prompts: Sequence[str], system_prompt: str | None = None) -> list[list[int]]:
        """Return the token ids of each prompt in its chat frame, with exactly one BOS where the tokenizer has one.

        Control tokens that a user wrote into a prompt are read as plain text: they do not end or begin a turn.
        """
        ids = [self._ids(self.render(self._defuse(prompt), system_prompt)) for prompt in prompts]
        return [self._one_bos(each) for each in ids]

    def _defuse(self, prompt: str) -> str:
        """Return the prompt with a space inside each control token, so that it is read as text."""
        for token in self._control_tokens:
            if token in prompt:
                prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
                self._notice("control tokens inside prompts were broken up by a space, so that they are read as text")
        return prompt

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return tuple(sorted(token for token in special if len(token) > 1))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        adds_bos = bos is not None and bos in self.tokenizer("a")["input_ids"][:1]
        if adds_bos and ids[:1] != [bos]:
            return [bos, *ids]
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

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

    def site_module(self, site: Site) -> nn.Module:
        """Return the module whose output (a tensor, or a tuple's first entry) is the site's value."""
        block = self._blocks[site.layer]
        if site.kind is SiteKind.RESIDUALS:
            return block
        module = _walk(block, self.family.attention if site.kind is SiteKind.ATTENTION else self.family.mlp)
        if module is None:
            raise InputError(f"activation_layers: {self.name} has no site {site}")
        return module

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s: %s", self.name, text)


def resolve(name: str) -> tuple[str, str | None]:
    """Return where a model lies and its revision; a folder that is no model is told here, before anything loads.

    Raises:
        InputError: A shipped name that does not exist, or a folder without a model.
    """
    if name.startswith(embedded.PREFIX):
        return str(embedded.model_path(name)), None
    folder = Path(name).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"models: {folder} holds no model (config.json is missing); give a Hugging Face model folder"
            )
        return str(folder), None
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"models: {name}: no such folder; give a Hugging Face model folder, a hub id or planted/NAME")
    source, _, revision = name.partition("@")
    return source, revision or None


def resolve_device(device: str) -> torch.device:
    """Return the device of a configured name."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a configured name; auto is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype), dtype
    return found
