import csv
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refusal.errors import InputError
from refusal.evaluation.agreement import compare, disagreements, judge_all, refusal_f1, write_disagreements
from refusal.evaluation.label_files import HumanLabel, read_labels
from refusal.labels import DETECTORS, Behaviour
from refusal.measures import kappa_estimate
from refusal.schemas import ModelOutput, ModelOutputs, Openers, PromptLabel, RefusalLabels

RESPONSES = {
    "a": "I can't help with that.",
    "b": "I cannot stress enough how good tea is. Boil water.",
    "c": "Water the roses.",
    "d": "=1+1 I refuse to answer.\x00",
}
R, P, C, U = Behaviour


def folder(scores=(2.0, -1.0, None, 1.0), responses=None):
    responses = responses or RESPONSES
    openers = Openers(
        refusal=(1,), compliance=(2,), refusal_text=("I",), compliance_text=("S",), ambiguous=(), reason=None
    )
    prompts = tuple(
        PromptLabel(
            id=name, category="privacy", dataset_label="safe", source="80k", rule="r",
            behaviour=DETECTORS["learned"]([text])[0].behaviour, first_token_id=0, first_token_score=score,
        )
        for (name, text), score in zip(responses.items(), scores, strict=True)
    )  # fmt: skip
    outputs = tuple(
        ModelOutput(id=n, prompt="p", response=t, finish_reason="eos") for n, t in reversed(responses.items())
    )
    return (
        RefusalLabels.build(model="m", openers=openers, notices=(), prompts=prompts),
        ModelOutputs.build(model="m", outputs=outputs),
    )


def test_detectors_are_compared_on_the_same_responses_whatever_the_order_of_the_files():
    judged = judge_all(*folder())
    assert judged.behaviours["learned"] == [R, C, C, R]
    assert judged.behaviours["arditi2024"] == [R, R, C, C]
    assert judged.behaviours["first_token"] == [R, C, U, R]
    found = compare(judged)
    pair = next(each for each in found.pairs if (each.first, each.second) == ("learned", "arditi2024"))
    assert (pair.same.k, pair.same.n, pair.kappa.value) == (2, 4, 0.0)
    assert "labels of the run" not in found.detectors  # they are those of a detector that is there
    assert found.people == ()


def test_people_are_found_by_id_by_text_and_by_model():
    people = [
        HumanLabel(R, "a", None, None),
        HumanLabel(C, None, "Water the roses. ", None),
        HumanLabel(R, "b", None, "another model"),
        HumanLabel(R, "d", "of a response that was another", None),
    ]
    judged = judge_all(*folder(), people)
    assert judged.people == (R, None, C, None)
    learned = compare(judged).people[0]
    assert learned.confusion["refused"]["refused"] == 1
    assert learned.confusion["complied"]["complied"] == 1
    assert (learned.same.k, learned.same.n, learned.refusal_f1.value) == (2, 2, 1.0)


def test_responses_of_other_prompts_than_the_labels_are_an_error():
    labels, outputs = folder()
    other = outputs.model_copy(update={"outputs": outputs.outputs[:-1]})
    with pytest.raises(InputError, match="the responses and the labels of m are not of the same prompts"):
        judge_all(labels, other)


def test_disagreements_are_listed_for_a_spreadsheet(tmp_path):
    judged = judge_all(*folder(), [HumanLabel(R, "c", None, None)])
    rows = disagreements(judged)
    assert [judged.labels.prompts[row].id for row in rows] == ["a", "b", "c", "d"]
    assert write_disagreements(tmp_path / "d.csv", [judged]) == len(rows)
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert table[1]["arditi2024"] == "refused"
    assert table[1]["learned"] == "complied"
    assert table[2]["person"] == "refused"
    assert table[3]["response"] == "'=1+1 I refuse to answer.\ufffd"


def test_f1_leaves_partial_refusals_of_people_out():
    assert refusal_f1([R, R, C, P], [R, C, C, R]).value == pytest.approx(2 / 3)


def test_kappa_has_the_interval_worked_out_by_hand():
    # p_aa .45, p_ab .05, p_bb .5: p_e .5, kappa .9. A .45 (1-.95*.1)^2 + .5 (1-1.05*.1)^2 = .7691, B .01*.05*.95^2,
    # C (.9-.05)^2 = .7225; var (A+B-C)/(.25 n).
    estimate = kappa_estimate(["a"] * 50 + ["b"] * 50, ["a"] * 45 + ["b"] * 55)
    a = 0.45 * (1 - 0.95 * 0.1) ** 2 + 0.5 * (1 - 1.05 * 0.1) ** 2
    half = 1.959964 * ((a + 0.01 * 0.05 * (0.45 + 0.5) ** 2 - 0.85**2) / 100) ** 0.5 / 0.5
    assert estimate.value == pytest.approx(0.9)
    assert (estimate.low, estimate.high) == (pytest.approx(0.9 - half, abs=1e-6), pytest.approx(0.9 + half, abs=1e-6))


@pytest.mark.parametrize(
    ("first", "second", "value", "reason"),
    [
        ("aabb", "aabb", 1.0, "they agree on every item"),
        ("aaaa", "aabb", 0.0, "one of them always says the same"),
        ("aaaa", "aaaa", None, "both always say the same one thing"),
        ("a", "a", None, "fewer than two items"),
    ],
)
def test_kappa_has_no_interval_where_the_variance_says_nothing(first, second, value, reason):
    found = kappa_estimate(first, second)
    assert (found.value, found.low, found.high, found.reason) == (value, None, None, reason)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=40))
def test_kappa_is_symmetric_and_lies_in_its_interval(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = kappa_estimate(first, second), kappa_estimate(second, first)
    assert (there.value is None) == (back.value is None)
    if there.value is None or there.low is None:
        assert there.reason
        return
    assert there.value == pytest.approx(back.value)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert (there.low, there.high) == (pytest.approx(back.low), pytest.approx(back.high))


# Files of labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", 'id,label,response\na,refused,"x, ""y""\nz"\nb,full_compliance,\n'),
        (
            "l.jsonl",
            '{"prompt_id": "a", "label": "Refused", "completion": "x, \\"y\\"\\nz"}\n\n'
            '{"id": "b", "label": "complied"}\n',
        ),
        (
            "l.json",
            '[{"id": "a", "label": "full refusal", "response": "x, \\"y\\"\\nz"},'
            '{"id": "b", "label": "complied"}]',
        ),
    ],
)  # fmt: skip
def test_the_three_formats_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name) == [HumanLabel(R, "a", 'x, "y"\nz', None), HumanLabel(C, "b", None, None)]


def test_a_json_object_maps_ids_to_labels(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps({"a": "partly_refused"}))
    assert read_labels(tmp_path / "l.json") == [HumanLabel(P, "a", None, None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "", r"ends in '.txt'; allowed are .csv, .jsonl, .json"),
        ("l.json", "{", r"l.json:1: not readable as JSON"),
        ("l.json", "3", r"holds int; allowed is a list, or an object id to label"),
        ("l.json", "[]", r"holds no labels"),
        (
            "l.csv",
            "id,label\na,refused\nb,complied\na,complied\na,refused\n",
            r"l.csv:4: 'a' is labelled complied, and refused at 2; leave one of them$",
        ),
        ("l.jsonl", '{"id": "a", "label": "refusd"}', r"l.jsonl:1: label is 'refusd'; .*; did you mean refused\?"),
        ("l.jsonl", '{"label": "refused", "text": "x"}', r"l.jsonl:1: found label, text; needed is one of id"),
        ("l.jsonl", "[1]", r"l.jsonl:1: found list; needed is a record"),
        ("l.csv", "id,label\n" + "a,x\n" * 9, r"l.csv:2: label is 'x'[\s\S]*\.\.\. and 4 more"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / name)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.csv: cannot be read"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"b.csv:1: found byte 0x.., which is not UTF-8"):
        read_labels(tmp_path / "b.csv")


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.sampled_from(list(Behaviour))), min_size=1)
)
def test_jsonl_comes_back_as_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("l") / "l.jsonl"
    path.write_text("".join(json.dumps({"response": text, "label": label}) + "\n" for text, label in rows))
    assert read_labels(path) == [HumanLabel(label, None, text, None) for text, label in rows]


@given(st.sampled_from([".csv", ".json", ".jsonl"]), st.text(st.characters(codec="utf-8")))
@example(".csv", "\rmore,fields")
def test_any_text_is_read_or_refused_with_a_message(tmp_path_factory, suffix, text):
    path = tmp_path_factory.mktemp("l") / f"l{suffix}"
    path.write_text(text, encoding="utf-8")
    try:
        found = read_labels(path)
    except InputError as error:
        found = str(error)
    assert found if isinstance(found, list) else found.startswith("--labels: ")
