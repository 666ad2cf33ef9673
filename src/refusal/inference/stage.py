"""The inference stage: prompts in, activations, responses and what the model did out.

1. load and draw the prompts, tokenise all of them: whatever is wrong with them is said before anything runs;
   tokens that every answer begins with (Llama 2 opens with a bare space) are moved into the prompt;
2. capture them shard by shard, sorted by length, in batches of similar length; a shard is written while the next is
   computed, and a killed run goes on at the first that is not complete; with SAEs that train on all positions, the same
   pass keeps the positions before the readout position too;
3. write the index; judge the responses, learn the openers, write labels, outputs and rates (`behaviour`).

Shards do not depend on each other: several processes, or machines, may each capture a part of them (step 2), one of
them, or a later one, does the rest (step 3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from refusal.artefacts import ResultPaths
from refusal.batch_memory import budget_for
from refusal.batches import Batcher, TokenCount
from refusal.capture import Capture, capture, check_finite
from refusal.config import Config, how_to_load
from refusal.errors import ArtefactError, InputError
from refusal.inference.answer_prefix import MAX_PREFIX, note_prefix, shared_answer_prefix
from refusal.inference.background import OneInFlight
from refusal.inference.behaviour import write_behaviour
from refusal.kept import plan_of
from refusal.models import ChatModel
from refusal.positions import READOUT_ONLY, Keep, Positions, count_rows, first_own_position
from refusal.processes import WHOLE, Part, this_part
from refusal.prompts import Draw, Prompt, draw, load_prompts
from refusal.resources import free_bytes, human_bytes
from refusal.shards import forget, missing
from refusal.store import ActivationWriter, Answer, Shard, Source, TopLogits, noted_prefix
from refusal.weights import weights_digest

log = logging.getLogger(__name__)

SHARD_PROMPTS = 256
"""Prompts per shard: what a kill can cost."""
SHARD_BYTES = 2**29
"""Positions before the readout position in a shard, in bytes, at most (or those of one prompt): what is in memory."""


def draw_prompts(config: Config) -> Draw:
    """Return the prompts of a run.

    Raises:
        InputError: The data set or the categories are wrong.
    """
    pool = load_prompts(config.dataset_dir, config.safe_subset)
    return draw(pool, config.categories, config.num_samples_per_category, seed=config.seed, shuffle=config.shuffle)


def run_inference(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Run the inference stage for one model.

    Raises:
        InputError: The prompts, the model or the sites are wrong, or activations are not finite.
    """
    inference = Inference(config, model_name, paths)
    inference.capture()
    inference.finish()


def merge_shards(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Write the index, the labels and the rates of one model from its shards; no prompt runs through the model.

    Raises:
        InputError: The prompts, the model or the sites are wrong.
        ArtefactError: A shard is not there; the message says which, and what makes it.
    """
    inference = Inference(config, model_name, paths, is_merge=True)
    incomplete = inference.missing()
    if incomplete:
        raise ArtefactError(f"{missing(inference.folder, incomplete, len(inference.shards))}; then --merge again")
    inference.finish()


def that_fit(
    model: ChatModel, drawn: Draw, token_ids: list[list[int]], max_new_tokens: int
) -> tuple[Draw, list[list[int]]]:
    """Return the prompts that fit the context with their answers, with a notice of those left out, and their tokens.

    Raises:
        InputError: No prompt of a category fits; names the longest prompt, its tokens and the limit.
    """
    limit = model.context_length
    lengths = [(len(ids), prompt) for prompt, ids in zip(drawn.prompts, token_ids, strict=True)]
    too_long = [] if limit is None else [entry for entry in lengths if entry[0] + MAX_PREFIX + max_new_tokens > limit]
    if not too_long:
        return drawn, token_ids
    n_tokens, longest = max(too_long, key=lambda entry: (entry[0], entry[1].id))
    said = (
        f"{len(too_long)} prompts do not fit the context of {model.name}: prompt {longest.id} has {n_tokens} tokens, "
        f"max_new_tokens is {max_new_tokens}, the limit is {limit} together with {MAX_PREFIX} to spare"
    )
    left_out = {prompt.id for _, prompt in too_long}
    rows = [row for row, prompt in enumerate(drawn.prompts) if prompt.id not in left_out]
    kept = replace(drawn, prompts=tuple(drawn.prompts[row] for row in rows), notices=(*drawn.notices, said))
    emptied = [category for category in drawn.categories if category not in kept.categories]
    if emptied:
        raise InputError(
            f"dataset_dir: {said}; nothing is left of {', '.join(emptied)}; shorten them, or lower max_new_tokens"
        )
    log.warning("%s; they are left out", said)
    return kept, [token_ids[row] for row in rows]


def what_is_kept(config: Config, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]]) -> Keep:
    """Return what is kept of the forward pass of each prompt besides its readout position.

    Raises:
        InputError: A prompt does not reach back to an offset of `capture.positions`.
    """
    asked = config.capture.positions
    offsets = tuple(sorted((each for each in asked if isinstance(each, int) and each < -1), reverse=True))
    shortest, prompt_id = min((len(ids), prompt.id) for ids, prompt in zip(token_ids, prompts, strict=True))
    beyond = [offset for offset in offsets if -offset > shortest]
    if beyond:
        raise InputError(
            f"capture.positions: {beyond[0]} is before the beginning of prompt {prompt_id}, which has {shortest} "
            f"tokens with its chat frame; allowed are -1 to -{shortest}"
        )
    own = {"mean": "mean" in asked, "others": config.keeps_all_positions}
    return Keep(offsets, **own, first=first_own_position(token_ids) if any(own.values()) else 1)


def require_disk(folder: Path, n_bytes: int) -> None:
    """Raise if the disk has no room for the positions before the readout position.

    Raises:
        InputError: Names the folder, what is needed and what is free.
    """
    # what an earlier run left there is replaced
    free = free_bytes(folder) + sum(path.stat().st_size for path in folder.glob("positions-*"))
    if n_bytes > free:
        raise InputError(
            f"sae.positions: all positions of the prompts take {human_bytes(n_bytes)} in {folder}, where "
            f"{human_bytes(free)} are free; free some, choose another --result-dir, name fewer sites in "
            "activation_layers, or set sae.positions: readout"
        )


def plan_shards(order: Sequence[int], n_bytes: Sequence[int]) -> list[list[int]]:
    """Return the prompts of each shard: at most `SHARD_PROMPTS`, and `SHARD_BYTES` of positions unless of one prompt.

    Args:
        order: Numbers of the prompts in the order in which they run.
        n_bytes: What is kept of the positions of each prompt, by its number.
    """
    shards: list[list[int]] = []
    room = 0
    for row in order:
        if not shards or len(shards[-1]) == SHARD_PROMPTS or n_bytes[row] > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(row)
        room -= n_bytes[row]
    return shards


class Inference:
    """One model's inference: prepared when it is made, captured in parts, finished once.

    Args:
        config: What to run.
        model_name: One of its models.
        paths: Where everything goes.
        is_merge: Nothing will be captured: what is common to all answers is taken from the shards that are there.

    Raises:
        InputError: The prompts, the model or the sites are wrong.
    """

    def __init__(self, config: Config, model_name: str, paths: ResultPaths, *, is_merge: bool = False) -> None:
        self.config = config
        self.paths = paths
        self.model = ChatModel.load(model_name, **how_to_load(config))
        self.studied = self.model.resolve_sites(config.activation_layers)
        self.sites = sorted({*self.studied, *self.model.resolve_extra_sites(config.capture.sites)})
        self.folder = paths.activations(model_name)
        self.batcher = Batcher(budget_for(self.model, config.batch_size, self.sites, config.max_new_tokens))
        drawn = draw_prompts(config)
        every = self.model.tokenize([prompt.text for prompt in drawn.prompts], config.system_prompt)
        self.drawn, token_ids = that_fit(self.model, drawn, every, config.max_new_tokens)
        prompts = self.drawn.prompts
        self.prefix = self._noted_prefix() if is_merge else self._find_prefix(token_ids)
        self.token_ids = [[*ids, *self.prefix] for ids in token_ids]
        self.keep = what_is_kept(config, prompts, self.token_ids)
        self.shards = self._plan_shards()
        self.writer = ActivationWriter(self.folder, self._plan(prompts, self.token_ids), self.prefix)

    def _find_prefix(self, token_ids: list[list[int]]) -> tuple[int, ...]:
        limit = self.config.max_new_tokens
        return shared_answer_prefix(self.model, self.drawn.prompts, token_ids, limit, self.batcher)

    def _noted_prefix(self) -> tuple[int, ...]:
        prefix = noted_prefix(self.folder)
        note_prefix(self.model, prefix)
        return prefix

    def _plan_shards(self) -> list[list[int]]:
        """Return the prompts of each shard, by length, then by id."""
        prompts, token_ids = self.drawn.prompts, self.token_ids
        order = sorted(range(len(prompts)), key=lambda row: (len(token_ids[row]), prompts[row].id))
        n_bytes = [0] * len(order)
        if self.keep.others:
            row_bytes = sum(map(self.model.width, self.sites)) * self.model.dtype.itemsize
            n_bytes = [n_rows * row_bytes for n_rows in count_rows(token_ids, self.keep.first)]
            require_disk(self.folder, sum(n_bytes))
        return plan_shards(order, n_bytes)

    def capture(self, part: Part = WHOLE) -> None:
        """Write every shard of a part that is not complete: number rank, rank + size, and so on.

        Raises:
            InputError: Activations are not finite, or memory ran out with a single prompt.
        """
        mine = range(len(self.shards))[part.rank :: part.size]
        self.batcher.count = TokenCount()
        total, hidden = sum(len(self.shards[index]) for index in mine), None if this_part().is_leader else True
        name = f"inference: {self.model.name}"
        with tqdm(total=total, desc=name, unit="prompt", disable=hidden) as bar, OneInFlight() as background:
            for index in mine:
                if self.writer.is_complete(index):
                    bar.update(len(self.shards[index]))
                    continue
                background.submit(self.writer.write, index, self._captured(self.shards[index], bar.update))

    def missing(self) -> list[int]:
        """Return the shards that are not complete."""
        return [index for index in range(len(self.shards)) if not self.writer.is_complete(index)]

    def finish(self) -> None:
        """Write the index over all shards, and what the model did; all shards must be complete."""
        modules = {str(site): self.model.module_name(site) for site in self.sites}
        extra = [site for site in self.sites if site not in self.studied]
        source = Source(modules, max(map(len, self.token_ids)))
        count = self.writer.finish(len(self.shards), source, extra)
        forget(self.folder)
        log.info(
            "%s: %d tokens of prompts, %d with padding (%.2f times)",
            *(self.model.name, count.needed, count.computed, count.ratio),
        )
        write_behaviour(self.model, self.drawn, self.paths, self.prefix, self.config)

    def _plan(self, prompts: Sequence[Prompt], token_ids: list[list[int]]) -> str:
        """Return a hash of all that decides the content of shards."""
        decisive: dict[str, Any] = {
            "prompts": [prompt.id for prompt in prompts],
            "tokens": token_ids,
            "sites": [str(site) for site in self.sites],
            "dtype": str(self.model.dtype),
            "max_new_tokens": self.config.max_new_tokens,
            "ends": sorted(self.model.eos_token_ids),
            "prefix": list(self.prefix),
            "shard": SHARD_PROMPTS,
            "model": weights_digest(self.model.model),
        }
        if self.keep != READOUT_ONLY:
            decisive |= {"keep": asdict(self.keep), "shard_bytes": SHARD_BYTES}
        return plan_of(decisive)

    def _captured(self, rows: Sequence[int], progress: Callable[[int], object]) -> Shard:
        """Return the shard of some prompts."""
        ids = [self.drawn.prompts[row].id for row in rows]
        return self._shard(ids, [self.token_ids[row] for row in rows], progress)

    def _shard(self, ids: list[str], token_ids: list[list[int]], progress: Callable[[int], object]) -> Shard:
        def run(rows: range) -> Capture:
            """Capture rows of the shard, checked for values that are not finite."""
            batch = token_ids[rows.start : rows.stop]
            found = capture(self.model, batch, self.sites, self.config.max_new_tokens, self.keep)
            check_finite(found, ids[rows.start : rows.stop], self.model)
            progress(len(rows))
            return found

        before_this = self.batcher.count
        parts = self.batcher.run([len(each) for each in token_ids], run)
        answers = [answer for part in parts for answer in part.answers]
        ended = [flag for part in parts for flag in part.ended]
        first = TopLogits.cat([part.first_token for part in parts])
        before = [part.positions for part in parts if part.positions is not None]
        return Shard(
            tuple(self._answer(*row) for row in zip(ids, answers, ended, first.ids[:, 0].tolist(), strict=True)),
            {site: torch.cat([part.readout[site] for part in parts]) for site in self.sites},
            first,
            Positions.cat(before, [len(part.answers) for part in parts]) if before else None,
            {
                at: {site: torch.cat([part.elsewhere[at][site] for part in parts]) for site in self.sites}
                for at in self.keep.elsewhere
            },
            self.batcher.count - before_this,
        )

    def _answer(self, prompt_id: str, tokens: list[int], ended: bool, first_token: int) -> Answer:
        response = self.model.tokenizer.decode([*self.prefix, *tokens], skip_special_tokens=True)
        return Answer(prompt_id, response, "eos" if ended else "length", first_token)
