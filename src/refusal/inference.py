"""The inference stage: prompts in, activations, responses and what the model did out.

1. load and draw the prompts, tokenise all of them: whatever is wrong with them is said before anything runs;
   tokens that every answer begins with (Llama 2 opens with a bare space) are moved into the prompt;
2. capture them shard by shard, sorted by length, each shard written when it is done (a killed run goes on there); with
   SAEs that train on all positions, the same pass keeps the positions before the readout position too;
3. judge the responses, learn the openers, write labels, outputs and rates.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from refusal.answer_prefix import shared_answer_prefix
from refusal.artefacts import ResultPaths
from refusal.capture import Capture, batch_size_for, capture, check_finite, in_batches
from refusal.config import Config
from refusal.errors import InputError
from refusal.evaluation import evaluate
from refusal.labels import Judgement
from refusal.labels.first_token import FIRST_TOKEN, judge_by_first_token
from refusal.labels.telling import tell
from refusal.metric import OpenersUnavailable, RefusalMetric, learn_openers, score_top_logits
from refusal.models import ChatModel
from refusal.positions import READOUT_ONLY, Keep, Positions, count_rows, first_own_position
from refusal.prompts import Draw, Prompt, draw, load_prompts
from refusal.resources import free_bytes, human_bytes
from refusal.schemas import ModelOutput, ModelOutputs, Openers, PromptLabel, RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore, ActivationWriter, Answer, Shard, Source, TopLogits

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
    drawn = draw_prompts(config)
    model = ChatModel.load(model_name, device=config.device, dtype=config.dtype)
    studied = model.resolve_sites(config.activation_layers)
    sites = sorted({*studied, *model.resolve_extra_sites(config.capture.sites)})
    token_ids = model.tokenize([prompt.text for prompt in drawn.prompts], config.system_prompt)
    require_room(model, drawn.prompts, token_ids, config.max_new_tokens)
    prefix = shared_answer_prefix(model, drawn.prompts, token_ids, config.max_new_tokens)
    token_ids = [[*ids, *prefix] for ids in token_ids]
    require_room(model, drawn.prompts, token_ids, config.max_new_tokens)
    _Run(config, model, sites, paths, prefix).capture_all(drawn.prompts, token_ids)
    write_behaviour(model, drawn, paths, prefix, config)


def require_room(
    model: ChatModel, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise if a prompt and its answer are longer than the model's context.

    Raises:
        InputError: Names the longest prompt, its tokens and the limit.
    """
    limit = model.context_length
    lengths = [(len(ids), prompt.id) for prompt, ids in zip(prompts, token_ids, strict=True)]
    too_long = [] if limit is None else [entry for entry in lengths if entry[0] + max_new_tokens > limit]
    if too_long:
        longest, prompt_id = max(too_long)
        raise InputError(
            f"dataset_dir: {len(too_long)} prompts do not fit the context of {model.name}: prompt {prompt_id} has "
            f"{longest} tokens and max_new_tokens is {max_new_tokens}, the limit is {limit} together; "
            "shorten or remove them, or lower max_new_tokens"
        )


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


class _Run:
    """Captures prompts with one model, shard by shard."""

    def __init__(
        self, config: Config, model: ChatModel, sites: list[Site], paths: ResultPaths, prefix: tuple[int, ...]
    ) -> None:
        self.prefix = prefix
        self.config = config
        self.model = model
        self.sites = sites
        self.folder = paths.activations(model.name)
        self.batch_size = 0
        self.keep = READOUT_ONLY
        self._row_bytes = sum(map(model.width, sites)) * model.dtype.itemsize

    def capture_all(self, prompts: Sequence[Prompt], token_ids: list[list[int]]) -> None:
        """Write every shard that is not complete, then the index."""
        order = sorted(range(len(prompts)), key=lambda row: (len(token_ids[row]), prompts[row].id))
        n_bytes = [0] * len(order)
        self.keep = what_is_kept(self.config, prompts, token_ids)
        if self.keep.others:
            n_bytes = [n_rows * self._row_bytes for n_rows in count_rows(token_ids, self.keep.first)]
            require_disk(self.folder, sum(n_bytes))
        shards = plan_shards(order, n_bytes)
        writer = ActivationWriter(self.folder, self._plan(prompts, token_ids))
        self.batch_size = batch_size_for(token_ids, self.config.batch_size)
        with tqdm(total=len(order), desc=f"inference: {self.model.name}", unit="prompt", disable=None) as bar:
            for index, rows in enumerate(shards):
                if writer.is_complete(index):
                    bar.update(len(rows))
                    continue
                ids = [prompts[row].id for row in rows]
                writer.write(index, self._shard(ids, [token_ids[row] for row in rows], bar.update))
        modules = {str(site): self.model.module_name(site) for site in self.sites}
        studied = self.model.resolve_sites(self.config.activation_layers)
        extra = [site for site in self.sites if site not in studied]
        writer.finish(len(shards), Source(modules, max(map(len, token_ids))), extra)

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
            "model": _weights_digest(self.model),
        }
        if self.keep != READOUT_ONLY:
            decisive |= {"keep": asdict(self.keep), "shard_bytes": SHARD_BYTES}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _shard(self, ids: list[str], token_ids: list[list[int]], progress: Callable[[int], object]) -> Shard:
        def run(rows: range) -> Capture:
            """Capture rows of the shard, checked for values that are not finite."""
            batch = token_ids[rows.start : rows.stop]
            found = capture(self.model, batch, self.sites, self.config.max_new_tokens, self.keep)
            check_finite(found, ids[rows.start : rows.stop], self.model)
            progress(len(rows))
            return found

        parts, self.batch_size = in_batches(len(ids), self.batch_size, run)
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
        )

    def _answer(self, prompt_id: str, tokens: list[int], ended: bool, first_token: int) -> Answer:
        response = self.model.tokenizer.decode([*self.prefix, *tokens], skip_special_tokens=True)
        return Answer(prompt_id, response, "eos" if ended else "length", first_token)


def _weights_digest(model: ChatModel) -> str:
    """Return a digest of a few numbers of every weight: shards of another model are not taken for this one's."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.model.state_dict().items()):
        flat = weight.flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def write_behaviour(
    model: ChatModel, drawn: Draw, paths: ResultPaths, prefix: tuple[int, ...] = (), config: Config | None = None
) -> None:
    """Judge the stored responses and write labels, outputs and rates.

    Args:
        model: The model that answered.
        drawn: Its prompts; the files follow their order.
        paths: Where the activation store is, and where the files go.
        prefix: Tokens that were moved from the answers into the prompts.
        config: Says who judges; None is the default.
    """
    store = ActivationStore(paths.activations(model.name))
    answer_of = {answer.id: answer for answer in store.answers()}
    answers = [answer_of[prompt.id] for prompt in drawn.prompts]
    settings = config or Config()
    texts = [(prompt.text, answer.response) for prompt, answer in zip(drawn.prompts, answers, strict=True)]
    judgements = tell(texts, settings, paths.judgements(model.name))
    learned = learn_openers([answer.first_token_id for answer in answers], [j.behaviour for j in judgements])
    scores = _first_token_scores(learned, store)
    if settings.labels.detector == FIRST_TOKEN:
        judgements = judge_by_first_token([scores.get(prompt.id) for prompt in drawn.prompts])
    labels = RefusalLabels.build(
        model=model.name,
        detector=settings.labels.detector if settings.labels.judge is None else f"judge: {settings.labels.judge}",
        openers=_openers(model, learned, prefix),
        notices=(*drawn.notices, *model.notices),
        prompts=tuple(
            _label(prompt, answer, judgement, scores)
            for prompt, answer, judgement in zip(drawn.prompts, answers, judgements, strict=True)
        ),
    )
    outputs = ModelOutputs.build(
        model=model.name,
        outputs=tuple(
            ModelOutput(id=prompt.id, prompt=prompt.text, response=answer.response, finish_reason=answer.finish_reason)
            for prompt, answer in zip(drawn.prompts, answers, strict=True)
        ),
    )
    outputs.save(paths.model_outputs(model.name))
    evaluate(labels).save(paths.evaluation(model.name))
    labels.save(paths.refusal_labels(model.name))


def _first_token_scores(learned: RefusalMetric | OpenersUnavailable, store: ActivationStore) -> dict[str, float]:
    """Return m by prompt id; nothing where no openers could be learned."""
    if isinstance(learned, OpenersUnavailable):
        return {}
    return dict(zip(store.prompt_ids, score_top_logits(learned, store.first_token()).tolist(), strict=True))


def _label(prompt: Prompt, answer: Answer, judgement: Judgement, scores: Mapping[str, float]) -> PromptLabel:
    return PromptLabel(
        id=prompt.id,
        category=prompt.category,
        dataset_label=prompt.dataset_label.value,
        source=prompt.source.value,
        behaviour=judgement.behaviour.value,
        rule=judgement.rule,
        confidence=judgement.confidence,
        first_token_id=answer.first_token_id,
        first_token_score=scores.get(prompt.id),
    )


def _openers(model: ChatModel, learned: RefusalMetric | OpenersUnavailable, prefix: tuple[int, ...]) -> Openers:
    def text(tokens: tuple[int, ...]) -> tuple[str, ...]:
        """Return tokens as the user would read them."""
        return tuple(model.tokenizer.decode([token]) for token in tokens)

    return Openers(
        refusal=learned.refusal_openers,
        compliance=learned.compliance_openers,
        refusal_text=text(learned.refusal_openers),
        compliance_text=text(learned.compliance_openers),
        ambiguous=learned.ambiguous,
        answer_prefix=prefix,
        reason=learned.reason if isinstance(learned, OpenersUnavailable) else None,
    )
