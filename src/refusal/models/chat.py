"""A prompt in its chat frame: template or fallback, system prompt, control tokens, exactly one BOS.

The frame ends where the answer begins, so its last token is the readout position. This module knows tokenizers, not
models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from refusal.errors import InputError

_MARKER = re.compile(r"<<?/?[^<>\s]{2,}>>?|\[/?[A-Z_]{2,}\]")
"""What templates mark turns with: `<|im_start|>`, `<<SYS>>`, `[/INST]`."""
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
        if self.tokenizer.chat_template is None:
            return None
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            return None

    def tokenize(self, prompts: Sequence[str], system_prompt: str | None = None) -> list[list[int]]:
        """Return the token ids of each prompt in its chat frame, with exactly one BOS where the tokenizer has one."""
        in_frame = self._count_control(self._ids(self.render("a", system_prompt)))
        return [self._tokenized(prompt, system_prompt, in_frame) for prompt in prompts]

    def _tokenized(self, prompt: str, system_prompt: str | None, in_frame: int) -> list[int]:
        ids = self._ids(self.render(self._defuse(prompt), system_prompt))
        if self._count_control(ids) > in_frame:
            # the tokenizer's own normalisation made them, of full-width brackets for instance
            ids = self._ids(self.render(self._defuse(self._normalised(prompt)), system_prompt))
        if self._count_control(ids) > in_frame:
            raise InputError(
                f"dataset_dir: the prompt that begins {prompt[:40]!r} holds control tokens of {self.name}'s tokenizer "
                "in a form that cannot be broken up; remove it"
            )
        return ids

    def _ids(self, text: str) -> list[int]:
        return self._one_bos(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count_control(self, ids: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in ids)

    def _normalised(self, prompt: str) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normaliser = getattr(backend, "normalizer", None)
        return prompt if normaliser is None else str(normaliser.normalize_str(prompt))

    def _defuse(self, prompt: str) -> str:
        """Return the prompt with a space inside each control token and marker, so that it is read as text."""
        for token in self._control_tokens:
            if token in prompt:
                prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
                self.add_notice("control tokens inside prompts were broken up by a space: they are read as text")
        return prompt

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special tokens, and the markers of the frame, which may be plain text as in `[/INST]`."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        with_system = self._apply([{"role": "system", "content": "b"}, {"role": "user", "content": "a"}])
        special |= set(_MARKER.findall(self.render("a") + (with_system or "")))
        return tuple(sorted(token for token in special if len(token) > 1))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        unknown = self.tokenizer.unk_token_id
        ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in self._control_tokens}
        return frozenset(number for number in ids.values() if number is not None and number != unknown)

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and bos in self.tokenizer("a")["input_ids"][:1]

    def _one_bos(self, ids: Sequence[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if self._adds_bos and list(ids[:1]) != [bos]:
            return [bos, *ids]
        return list(ids[1:] if bos is not None and list(ids[:2]) == [bos, bos] else ids)
