"""Where answers part: tokens that every answer begins with are moved into the prompt.

Llama 2 opens every answer with a bare space. A readout before it would measure nothing that tells refusal from
compliance, and no opener could be learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from refusal.batch_memory import budget_for
from refusal.batches import Batcher
from refusal.capture import capture
from refusal.labels import Behaviour, classify_detailed
from refusal.models import ChatModel
from refusal.prompts import DatasetLabel, Prompt

PROBE_PROMPTS = 32
"""Prompts of each dataset label that are answered to find a common beginning of answers."""
SHARED_BY = 0.9
"""Share of the refused, and of the complied, answers that must begin with a token for it to be common."""
MIN_OF_EACH = 3
MAX_PREFIX = 3
"""Tokens of a common beginning, at most."""


def shared_answer_prefix(
    model: ChatModel,
    prompts: Sequence[Prompt],
    token_ids: list[list[int]],
    max_new_tokens: int,
    batcher: Batcher | None = None,
) -> tuple[int, ...]:
    """Return the tokens that nearly all answers begin with, refused and complied ones alike; usually none.

    At such a token nothing is decided yet: refusal would be measured before it shows. A few prompts of both kinds of
    files are answered to find out.

    Args:
        model: The model.
        prompts: The prompts of the run.
        token_ids: The same as tokens.
        max_new_tokens: Longest answer.
        batcher: Runs the batches; None: one whose budget is found.
    """
    batcher = batcher or Batcher(budget_for(model, "auto", [], max_new_tokens))
    probe = sorted(_probe(prompts), key=lambda row: len(token_ids[row]))
    prefix: tuple[int, ...] = ()
    while len(prefix) < MAX_PREFIX:
        batch = [[*token_ids[row], *prefix] for row in probe]
        parts = batcher.run([len(ids) for ids in batch], partial(_answer, model, batch, max_new_tokens))
        answers = [answer for part in parts for answer in part]
        texts = [model.tokenizer.decode([*prefix, *answer], skip_special_tokens=True) for answer in answers]
        common = _common_first_token(answers, [judgement.behaviour for judgement in classify_detailed(texts)])
        if common is None:
            break
        prefix = (*prefix, common)
    note_prefix(model, prefix)
    return prefix


def note_prefix(model: ChatModel, prefix: Sequence[int]) -> None:
    """Say in the result files that tokens were moved, if any were."""
    if prefix:
        text = model.tokenizer.decode(list(prefix))
        model.notices.append(f"all answers begin with {text!r}: it was moved into the prompt, and the readout after it")


def _answer(model: ChatModel, token_ids: list[list[int]], max_new_tokens: int, rows: range) -> list[list[int]]:
    return capture(model, token_ids[rows.start : rows.stop], [], max_new_tokens).answers


def _probe(prompts: Sequence[Prompt]) -> list[int]:
    """Return rows of a few safe and a few toxic prompts, whatever their order."""
    rows: list[int] = []
    for label in DatasetLabel:
        of_label = [row for row, prompt in enumerate(prompts) if prompt.dataset_label is label]
        rows += sorted(of_label, key=lambda row: prompts[row].id)[:PROBE_PROMPTS]
    return rows


def _common_first_token(answers: list[list[int]], behaviours: list[Behaviour]) -> int | None:
    """Return the token that begins nearly all refused and nearly all complied answers; None without three of each."""
    found = set()
    for behaviour in (Behaviour.REFUSED, Behaviour.COMPLIED):
        first = [answer[0] for answer, other in zip(answers, behaviours, strict=True) if other is behaviour and answer]
        if len(first) < MIN_OF_EACH:
            return None
        token, count = Counter(first).most_common(1)[0]
        if count < SHARED_BY * len(first):
            return None
        found.add(token)
    return found.pop() if len(found) == 1 else None
