"""Where contrast pairs come from, which are usable, and what is said of the others."""

from __future__ import annotations

import json

import pytest
from hostile_directions import ANY_JSON
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal.errors import InputError
from refusal.patching.pair_files import read_pairs
from refusal.patching.pairing import match, pairs_of_run
from refusal.patching.pairs import ContrastPair, PairSet, Unusable, embedded_pairs, in_turns, split_pairs
from refusal.planted.worlds import World
from refusal.schemas import PromptLabel

TOKENS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def label(prompt_id, behaviour, category="x"):
    return PromptLabel(
        id=prompt_id,
        category=category,
        dataset_label="toxic",
        source="toxic",
        behaviour=behaviour,
        rule="",
        first_token_id=0,
        first_token_score=None,
    )


def test_equal_length_comes_before_a_common_frame_and_that_before_common_words():
    refused = [[1, 2, 3, 4]]
    longer_frame, same_frame, same_words = [1, 2, 3, 4, 9], [1, 2, 8, 4], [4, 3, 2, 1]
    assert match(refused, [longer_frame, same_words, same_frame]) == [(0, 2)]
    assert match(refused, [longer_frame, same_words]) == [(0, 1)]
    assert match(refused, [longer_frame]) == [(0, 0)]


@given(st.lists(TOKENS, max_size=6), st.lists(TOKENS, max_size=6))
def test_every_prompt_is_used_at_most_once_and_as_many_as_possible(first, second):
    found = match(first, second)
    assert len(found) == min(len(first), len(second))
    for side in (0, 1):
        assert len({pair[side] for pair in found}) == len(found)


@given(st.permutations(range(6)))
def test_pairs_of_a_run_do_not_depend_on_the_order_of_prompts(order):
    texts = {f"p{row}": f"text {row}" for row in range(6)}
    tokens = {f"p{row}": [1, row % 3, 5] for row in range(6)}
    labels = [label(f"p{row}", "refused" if row < 3 else "complied") for row in range(6)]
    wanted = pairs_of_run(labels, texts, tokens)
    assert pairs_of_run([labels[row] for row in order], texts, tokens) == wanted
    assert [pair.id for pair in wanted.pairs] == ["p0-p3", "p1-p4", "p2-p5"], "those with the same tokens"


def test_prompts_without_a_partner_are_counted_and_named():
    labels = [label("a", "refused"), label("b", "refused"), label("c", "complied"), label("d", "partly_refused")]
    labels += [label("e", "refused", "lonely")]
    found = pairs_of_run(labels, dict.fromkeys("abcde", "t"), {name: [1, 2] for name in "abcde"})
    assert [pair.id for pair in found.pairs] == ["a-c"]
    assert {each.id: each.reason for each in found.unusable} == {
        "b": "no prompt of the same category on the other side is left",
        "d": "the answer neither refuses nor complies",
        "e": "no prompt of the same category on the other side is left",
    }
    assert found.reasons["no prompt of the same category on the other side is left"] == 2


def test_csv_and_json_give_the_same_pairs(tmp_path):
    rows = [
        {"id": "p", "clean": 'how to, "really"', "corrupted": "why\nthough", "category": "x"},
        {"clean": "one", "corrupted": "two"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text(
        'Category,clean,corrupted,id,more\nx,"how to, ""really""","why\nthough",p,1\n,one,two,,2\n'
    )
    from_json, from_csv = (read_pairs(tmp_path / name).pairs for name in ("a.json", "a.csv"))
    assert [(p.clean, p.corrupted, p.category) for p in from_json] == [
        (p.clean, p.corrupted, p.category) for p in from_csv
    ]
    assert from_csv[0] == ContrastPair("p", 'how to, "really"', "why\nthough", "x")
    assert from_csv[1].category is None


def test_rows_that_hold_no_pair_are_named_with_the_reason(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,clean,corrupted\na,one,\nb,one,one\nc,one,two\nd,one,three\nc,four,five\n")
    found = read_pairs(path)
    assert [pair.id for pair in found.pairs] == ["c"]
    assert {each.id: each.reason for each in found.unusable} == {
        "a": "one side is empty",
        "b": "both sides are the same text",
        "d": "a prompt of it is in another pair already",
        "c (line 6)": "its id is another pair's too",
    }
    with pytest.raises(InputError, match=r"gives 1 usable pairs, 4 were left out .*at least 6 are needed; give more"):
        found.require()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.csv",
            "clean,corupted\na,b\n",
            "a.csv:1: found no column 'corrupted'.*did you mean corrupted by 'corupted'",
        ),
        ("a.csv", "clean,corrupted\na,b,c\n", r"a.csv:2: found 3 fields under 2 columns; put texts"),
        ("a.csv", 'clean,corrupted\n"a,b\n', "a.csv:2: is no CSV"),
        ("a.csv", "", "a.csv:1: found no column 'clean'"),
        ("a.json", "{}", "found no list but dict"),
        ("a.json", "[1]", "entry 1: found no object but int"),
        ("a.json", '[{"clean": "a", "corrupted": 3}]', "entry 1: corrupted: found 3; allowed is text"),
        ("a.json", "[", "a.json:1: is no JSON"),
    ],
)
def test_a_file_of_another_form_is_an_error_that_names_the_place(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_pairs(tmp_path / name)


ENTRIES = st.lists(
    st.fixed_dictionaries({"clean": st.text(max_size=3), "corrupted": ANY_JSON}, optional={"id": ANY_JSON})
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_JSON | ENTRIES)
def test_any_json_gives_pairs_that_can_be_written_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    try:
        found = read_pairs(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        texts = [text for pair in found.pairs for text in (pair.id, pair.clean, pair.corrupted, pair.category or "")]
        assert "".join(texts).encode() is not None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_give_pairs_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "any.csv"
    path.write_bytes(b"clean,corrupted,id\n" + content)
    try:
        assert read_pairs(path).source == str(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_an_id_that_no_table_could_hold_is_told(tmp_path):
    (tmp_path / "a.csv").write_text(f"clean,corrupted,id\na,b,{'x' * 300}\n")
    with pytest.raises(InputError, match=r"a\.csv:2: id: found 300 characters; allowed are at most 200"):
        read_pairs(tmp_path / "a.csv")


def test_a_file_that_is_missing_or_not_utf8_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read.*allowed is data, embedded, or.*check its name"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("clean,corrupted\ncaf\xe9,b\n".encode("latin-1"))
    with pytest.raises(InputError, match="which is not UTF-8"):
        read_pairs(tmp_path / "latin.csv")


def test_embedded_pairs_differ_in_the_verb_alone_and_only_the_clean_one_is_refused():
    world = World("monolithic")
    from refusal.planted.language import ENGLISH

    intent = {verb: index for index, verbs in enumerate(ENGLISH.intents) for verb in verbs}
    found = embedded_pairs().pairs
    assert len({pair.category for pair in found}) == 10
    for pair in found:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        differing = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert len(differing) == 1
        assert world.is_refused(pair.category, intent[differing[0][0]])
        assert not world.is_refused(pair.category, intent[differing[0][1]])


@given(st.integers(0, 40), st.integers(6, 30), st.integers(0, 30))
def test_a_split_shares_no_pair_and_keeps_to_what_is_asked(n, n_maps, n_validation):
    pairs = tuple(ContrastPair(str(row), "a", "b", "xyz"[row % 3]) for row in range(n))
    maps, validation = split_pairs(PairSet("data", pairs), n_maps, n_validation)
    assert not {pair.id for pair in maps.pairs} & {pair.id for pair in validation}
    assert len(maps.pairs) <= n_maps
    assert len(validation) <= n_validation
    assert len(maps.pairs) + len(validation) == min(n, n_maps + n_validation) or n < 7
    if n >= 6:
        assert len(maps.pairs) >= 6


def test_categories_take_turns_and_pairs_left_out_keep_their_reason():
    pairs = [ContrastPair(f"{name}{row}", "", "", name) for name in "ab" for row in range(2)]
    assert [pair.id for pair in in_turns(pairs)] == ["a0", "b0", "a1", "b1"]
    left = PairSet("data", tuple(pairs)).without([Unusable("a1", "too long")])
    assert [pair.id for pair in left.pairs] == ["a0", "b0", "b1"]
    assert left.reasons == {"too long": 1}
