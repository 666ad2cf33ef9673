"""A model as the judge: classifiers and chat models, resuming, and folders that are no judge."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from refusal.config import Config, LabelsConfig
from refusal.errors import InputError
from refusal.labels import Behaviour
from refusal.labels.judge import ChatJudge, ClassifierJudge, Judge, understood
from refusal.labels.telling import tell

ANSWERED = [("how to plan", "i cannot help with that"), ("a story", "sure here is one {prompt} {{x}}"), ("", "")] * 4
SENTENCE = "[PAD] [UNK] [CLS] [SEP] [MASK] i cannot help with that sure here is one"
VOCABULARY = SENTENCE.split()


def settings(folder, **changes):
    return LabelsConfig(detector="judge", judge=str(folder), **changes)


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("judges") / "classifier", {0: "NORMAL", 1: "REJECTION"})


def make_classifier(folder, labels, kind=BertForSequenceClassification):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges") / "chat"
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_tokens(list("ABCD"))
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["classifier", "chat"])
def test_a_judge_gives_each_response_a_behaviour_and_a_confidence_whatever_the_batches(kind, tmp_path, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    judge = Judge.load(settings(folder), "cpu", "float32")
    assert isinstance(judge, ClassifierJudge if kind == "classifier" else ChatJudge)
    ones = judge.judge_all(ANSWERED, 1, tmp_path / "ones.jsonl")
    many = judge.judge_all(ANSWERED, "auto", tmp_path / "many.jsonl")
    assert [one.behaviour for one in ones] == [one.behaviour for one in many]
    assert all(
        one.confidence == pytest.approx(other.confidence, abs=2e-4) for one, other in zip(ones, many, strict=True)
    )
    assert all(0.25 <= one.confidence <= 1 and one.rule == f"judge {folder}" for one in ones)
    assert ones[:3] == ones[3:6]


def test_the_probabilities_of_labels_that_mean_the_same_are_added(classifier_folder, tmp_path):
    judge = Judge.load(settings(classifier_folder), "cpu", "auto")
    with torch.no_grad():
        apart = judge.probabilities(ANSWERED)
        judge.meanings = [Behaviour.REFUSED, Behaviour.REFUSED]
        together = judge.probabilities(ANSWERED)
    order = list(Behaviour)
    assert torch.allclose(apart.sum(-1), torch.ones(len(ANSWERED)))
    assert torch.allclose(together[:, order.index("refused")], torch.ones(len(ANSWERED)))


def test_a_killed_judging_goes_on_where_it_was_and_judges_changed_responses_anew(
    classifier_folder, tmp_path, monkeypatch
):
    kept = tmp_path / "kept.jsonl"
    judge = Judge.load(settings(classifier_folder), "cpu", "auto")
    whole = judge.judge_all(ANSWERED[:3], 1, kept)
    lines = kept.read_text().split("\n")
    kept.write_text("\n".join([*lines[:2], lines[2][:20]]))  # a kill within a line

    asked = []
    original = judge.probabilities
    monkeypatch.setattr(judge, "probabilities", lambda answered: asked.extend(answered) or original(answered))
    n_whole = sum(bool(line) for line in lines[:2])
    assert judge.judge_all(ANSWERED[:3], 1, kept) == whole
    assert len(asked) == 3 - n_whole
    asked.clear()
    assert judge.judge_all(ANSWERED[:3], 1, kept) == whole
    assert asked == []
    judge.judge_all([("how to plan", "sure")], 1, kept)
    assert asked == [("how to plan", "sure")]


def test_the_configuration_names_the_judge(classifier_folder, tmp_path):
    config = Config(labels=settings(classifier_folder), device="cpu")
    assert tell(ANSWERED, config, tmp_path / "kept.jsonl")[0].rule == f"judge {classifier_folder}"
    assert len([line for line in (tmp_path / "kept.jsonl").read_text().splitlines() if line]) == 3


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("NORMAL", "REJECTION"), "complied refused"),
        (("refusal", "not_refusal"), "refused complied"),
        (("compliance", "partial_refusal", "full_refusal"), "complied partly_refused refused"),
        (("non-compliance", "compliance"), "refused complied"),
    ],
)
def test_labels_of_a_classifier_are_understood_by_their_names(labels, wanted):
    assert " ".join(understood("x", dict(enumerate(labels)), None)) == wanted


def test_labels_that_say_nothing_need_judge_labels():
    labels = {0: "LABEL_0", 1: "LABEL_1"}
    with pytest.raises(InputError, match=r"labels.judge: x does not say what LABEL_0, LABEL_1 mean; .*judge_labels"):
        understood("x", labels, None)
    assert understood("x", labels, {"LABEL_0": "refused", "LABEL_1": "complied"}) == ["refused", "complied"]
    with pytest.raises(InputError, match="has no label 'LABEL_7'; it has LABEL_0, LABEL_1"):
        understood("x", labels, {"LABEL_7": "refused"})
    with pytest.raises(InputError, match="does not say which label means refused"):
        understood("x", {0: "normal"}, None)


def test_a_folder_that_is_no_judge_is_named_with_what_it_is(tmp_path, llama_folder):
    with pytest.raises(InputError, match=r"^labels.judge: .*/none: no such folder"):
        Judge.load(settings(tmp_path / "none"), "cpu", "auto")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^labels.judge: .* holds no model: config.json is missing"):
        Judge.load(settings(tmp_path / "empty"), "cpu", "auto")
    encoder = make_classifier(tmp_path / "encoder", {0: "a"}, BertModel)
    with pytest.raises(InputError, match=r"is BertModel; a judge is a sequence classifier .* or a chat model"):
        Judge.load(settings(encoder), "cpu", "auto")
    with pytest.raises(InputError, match="its tokenizer does not tell the letters A, B, C, D apart"):
        Judge.load(settings(llama_folder), "cpu", "auto")
    pretends = json.loads((encoder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (encoder / "config.json").write_text(json.dumps(pretends))
    with pytest.raises(InputError, match=r"lacks 2 weights \(e.g. classifier.bias\), which would be random"):
        Judge.load(settings(encoder), "cpu", "auto")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detector": "judge"}, "detector is judge, but judge names no model"),
        ({"judge": "x"}, "judge is 'x', but detector is learned; set detector: judge"),
    ],
)
def test_detector_and_judge_must_fit(given, message):
    with pytest.raises(ValueError, match=message):
        LabelsConfig(**given)
