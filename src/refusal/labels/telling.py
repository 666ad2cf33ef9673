"""Who tells what a model did: the detector or the judge that the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refusal.config import Config
from refusal.labels import DEFAULT, DETECTORS
from refusal.labels.behaviour import Judgement
from refusal.labels.first_token import FIRST_TOKEN


def tell(answered: Sequence[tuple[str, str]], config: Config, kept: Path) -> list[Judgement]:
    """Return what the configured detector or judge says of each response, in order.

    `first_token` needs openers, which are learned from what the default detector says: that is returned for it.

    Args:
        answered: Prompt and response.
        config: Its `labels` say who judges; its device, dtype and batch_size hold for a judge.
        kept: File in which a judge's verdicts are kept as they come.

    Raises:
        InputError: The judge is no model that can judge.
    """
    settings = config.labels
    if settings.judge is None:
        name = DEFAULT if settings.detector == FIRST_TOKEN else settings.detector
        return DETECTORS[name]([response for _, response in answered])
    from refusal.labels.judge import Judge

    judge = Judge.load(settings, config.device, config.dtype, trust_remote_code=config.trust_remote_code)
    return judge.judge_all(answered, config.batch_size, kept)
