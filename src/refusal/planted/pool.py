"""Random prompts of a world as tensors: tokens, answers, and what each carrier is to be."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal.planted.build import ASSISTANT, USER
from refusal.planted.data import language_of
from refusal.planted.language import Language, PlantedPrompt
from refusal.planted.worlds import MECHANISMS, World


@dataclass(frozen=True)
class PromptPool:
    """Prompts as tensors, left padded so that the readout position is the last."""

    input_ids: Int[Tensor, "prompt pos"]
    attention_mask: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt _"]
    """Token ids of the answer and the end token; -100 beyond."""
    style: Int[Tensor, " prompt"]
    category: Int[Tensor, " prompt"]
    is_refused: Bool[Tensor, " prompt"]
    """What the model is to do."""
    values: Bool[Tensor, "layer prompt carrier"]
    """v_c of each prompt at each planted layer; False beyond a layer's carriers."""

    def __len__(self) -> int:
        return len(self.style)

    def rows(self, rows: Int[Tensor, " prompt"]) -> PromptPool:
        """Return some of the prompts."""
        chosen = {each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "values"}
        return PromptPool(**chosen, values=self.values[:, rows])


def make_pool(world: World, tokenizer: Any, n: int, generator: np.random.Generator) -> PromptPool:
    """Return n random prompts of a world."""
    words = language_of(world)
    prompts = [words.prompt(generator) for _ in range(n)]
    refused = _wanted(world, prompts, generator)
    frame = [tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.bos_token, USER, ASSISTANT)]
    ids = [[*frame[:2], *tokenizer(each.text, add_special_tokens=False)["input_ids"], frame[2]] for each in prompts]
    longest = max(map(len, ids))
    input_ids = torch.full((n, longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    names = list(words.topics)
    return PromptPool(
        input_ids=input_ids,
        attention_mask=mask,
        answers=_answers(words, tokenizer, prompts, refused),
        style=torch.tensor([each.style for each in prompts]),
        category=torch.tensor([names.index(each.category) for each in prompts]),
        is_refused=torch.from_numpy(refused),
        values=_values(world, prompts),
    )


def _wanted(world: World, prompts: list[PlantedPrompt], generator: np.random.Generator) -> Bool[np.ndarray, " prompt"]:
    behaviour = MECHANISMS[world.mechanism].behaviour
    if behaviour == "chance":
        return generator.random(len(prompts)) < 0.5
    if behaviour == "nothing":
        return np.zeros(len(prompts), bool)
    return np.array([world.is_refused(each.category, each.intent) for each in prompts])


def _answers(
    words: Language, tokenizer: Any, prompts: list[PlantedPrompt], refused: Bool[np.ndarray, " prompt"]
) -> Int[Tensor, "prompt _"]:
    texts = {(side, style): answer_ids(words, tokenizer, side, style) for side in (True, False) for style in (0, 1)}
    answers = torch.full((len(prompts), max(map(len, texts.values()))), -100)
    for row, each in enumerate(prompts):
        tokens = texts[bool(refused[row]), each.style]
        answers[row, : len(tokens)] = torch.tensor(tokens)
    return answers


def _values(world: World, prompts: list[PlantedPrompt]) -> Bool[Tensor, "layer prompt carrier"]:
    width = max(len(world.early), len(world.late))
    values = np.zeros((len(world.planted_layers), len(prompts), width), bool)
    for index, layer in enumerate(world.planted_layers):
        rows = [world.values(layer, each.category, each.intent) for each in prompts]
        values[index, :, : len(rows[0])] = rows
    return torch.from_numpy(values)


def answer_ids(words: Language, tokenizer: Any, refused: bool, style: int) -> list[int]:
    """Return the token ids of an answer and the end token."""
    ids = tokenizer(words.answers[refused][style], add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def first_tokens(words: Language, tokenizer: Any) -> Int[Tensor, "2 2"]:
    """Return the first token of each answer, as `[refused, style]`."""
    return torch.tensor(
        [[answer_ids(words, tokenizer, refused, style)[0] for style in (0, 1)] for refused in (False, True)]
    )
