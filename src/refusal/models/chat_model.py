"""A chat model as everything else uses it: loaded by name, prompts as tokens in its chat frame, forward passes.

Every model is checked when it loads (`refusal.models.checks`). How weights and tokenizer are found is in
`refusal.loading`, how a prompt is framed in `refusal.models.chat`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal import loading
from refusal.errors import InputError, RefusalError
from refusal.loading import DeviceMap
from refusal.models import checks as model_checks
from refusal.models.chat import ChatFrame
from refusal.models.sited import SitedModel
from refusal.resources import is_out_of_memory
from refusal.untrusted.files import first_line

log = logging.getLogger(__name__)


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


class ChatModel(SitedModel):
    """A causal chat model and its tokenizer, frozen, in evaluation mode."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__(name, model)
        self.tokenizer = tokenizer

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

    # Checks ----------------------------------------------------------------------------------------------------------

    def check_sites(self) -> None:
        """Raise if a site is not what it should be (`refusal.models.checks`).

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
