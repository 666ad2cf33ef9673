"""A prompt in its chat frame: template or fallback, system prompt, control tokens, exactly one BOS.

The frame ends where the answer begins, so its last token is the readout position. This module knows tokenizers, not
models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from refusal.errors import InputError

FALLBACK_TEMPLATE = "{system}User: {prompt}\nAssistant:"
"""Used, and said, when a tokenizer has no chat template; `system`: the system prompt and an empty line, or nothing."""


@dataclass(frozen=True)
class ChatFrame:
    """Frames the prompts of one model."""

    name: str
    """The model's name, for messages."""
    tokenizer: Any
    add_notice: Callable[[str], None]
    """Told, in a sentence, whenever a prompt is framed otherwise than a plain template would."""

    def render(self, prompt: str, system_prompt: str | None = None) -> str:
        """Return the text the model is given: chat template with the generation prompt, or the documented fallback.

        Raises:
            InputError: The template fails on a single user turn.
        """
        if self.tokenizer.chat_template is None:
            self.add_notice("the tokenizer has no chat template; prompts are framed as 'User: ...' and 'Assistant:'")
            system = "" if system_prompt is None else f"{system_prompt}\n\n"
            return (self.tokenizer.bos_token or "") + FALLBACK_TEMPLATE.format(system=system, prompt=prompt)
        turns = [{"role": "user", "content": prompt}]
        if system_prompt is not None:
            rendered = self._apply([{"role": "system", "content": system_prompt}, *turns])
            if rendered is not None and system_prompt.strip() in rendered:  # templates trim what they are given
                return rendered
            self.add_notice("the chat template takes no system prompt; it is put before the user's text")
            turns = [{"role": "user", "content": f"{system_prompt}\n\n{prompt}"}]
        rendered = self._apply(turns)
        if rendered is None:
            raise InputError(f"models: {self.name}: the chat template fails on a single user turn; check its tokenizer")
        return rendered

    def _apply(self, turns: list[dict[str, str]]) -> str | None:
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            return None

    def tokenize(self, prompts: Sequence[str], system_prompt: str | None = None) -> list[list[int]]:
        """Return the token ids of each prompt in its chat frame, with exactly one BOS where the tokenizer has one."""
        framed = [self.render(self._defuse(prompt), system_prompt) for prompt in prompts]
        return [self._one_bos(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in framed]

    def _defuse(self, prompt: str) -> str:
        """Return the prompt with a space inside each control token, so that it is read as text."""
        for token in self._control_tokens:
            if token in prompt:
                prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
                self.add_notice("control tokens inside prompts were broken up by a space: they are read as text")
        return prompt

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return tuple(sorted(token for token in special if len(token) > 1))

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and bos in self.tokenizer("a")["input_ids"][:1]

    def _one_bos(self, ids: Sequence[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if self._adds_bos and list(ids[:1]) != [bos]:
            return [bos, *ids]
        return list(ids[1:] if bos is not None and list(ids[:2]) == [bos, bos] else ids)
