"""What a model did, from its stored answers: judged, with first-token scores, as labels, outputs and rates.

1. judge the responses (`refusal.labels`);
2. learn the openers from the judgements, and score the stored first-token logits with them;
3. write outputs and rates, and last the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.evaluation.rates import evaluate
from refusal.labels import Judgement
from refusal.labels.first_token import FIRST_TOKEN, judge_by_first_token
from refusal.labels.telling import tell
from refusal.metric import OpenersUnavailable, RefusalMetric, learn_openers, score_top_logits
from refusal.models import ChatModel
from refusal.prompts import Draw, Prompt
from refusal.schemas import ModelOutput, ModelOutputs, Openers, PromptLabel, RefusalLabels
from refusal.store import ActivationStore, Answer


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
    scores: dict[str, float] = {}
    for prompt_ids, top in store.iter_first_token():  # those of all prompts together would fill the memory
        scores |= zip(prompt_ids, score_top_logits(learned, top).tolist(), strict=True)
    return scores


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
