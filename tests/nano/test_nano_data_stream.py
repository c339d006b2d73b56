"""The stream of conversations: the same by seed, apart by split, and encoded as the server encodes."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from nano_data import FAMILIES, MODES, Example, Mix, Mode, Split, make_example, stream
from nano_data.draw import Draw, owner
from nano_data.exact import LARGER, make_decision, sample_keys
from nano_data.render import EOS_ID, TOKENIZER_FILE, default_renderer
from nano_data.wordings import MORE, WORDINGS
from nano_wordings import plain_words, words_apart

from dsv4_backend.chat import ChatEncoder

ENCODER = ChatEncoder(TOKENIZER_FILE)
CASES = list(itertools.product(FAMILIES, MODES))
DECISION = re.compile(r"(\d+) is (\w+), so (\w+): (yes|no)\.")


def some(family: str, mode: Mode, split: Split = "train", count: int = 12) -> list[Example]:
    mix = Mix(families={family: 1}, modes={mode: 1})
    return list(itertools.islice(stream(3, split, mix), count))


def test_a_seed_gives_the_same_stream() -> None:
    first, second = (list(itertools.islice(stream(5, "train"), 40)) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_stream() -> None:
    first, second = (list(itertools.islice(stream(seed, "train"), 5)) for seed in (5, 6))
    assert first != second


def test_workers_share_a_stream_by_start_and_step() -> None:
    whole = list(itertools.islice(stream(5, "train"), 12))
    parts = [list(itertools.islice(stream(5, "train", start=start, step=3), 4)) for start in range(3)]
    assert [parts[index % 3][index // 3] for index in range(12)] == whole


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_the_prompt_is_what_the_server_encodes(family: str, mode: Mode) -> None:
    for example in some(family, mode):
        served = ENCODER.encode("chat", json.dumps(example.body)).token_ids
        assert example.token_ids[: example.num_prompt_tokens] == served


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_the_answer_is_trained_whole_and_ends_once(family: str, mode: Mode) -> None:
    for example in some(family, mode):
        answer = example.token_ids[example.num_prompt_tokens :]
        assert answer.index(EOS_ID) == len(answer) - 1
        assert all(example.loss_mask[example.num_prompt_tokens :])
        assert default_renderer().decode(list(answer[:-1])) == example.answer


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_nothing_but_the_assistant_is_trained(family: str, mode: Mode) -> None:
    think_ids = {default_renderer().token_id(text) for text in ("<think>", "</think>")}
    for example in some(family, mode):
        for index in range(1, example.num_prompt_tokens):
            if example.loss_mask[index] and not example.loss_mask[index - 1]:
                assert example.token_ids[index - 1] in think_ids
                assert example.token_ids[index - 2] == default_renderer().token_id("<｜Assistant｜>")
            if example.loss_mask[index - 1] and not example.loss_mask[index]:
                assert example.token_ids[index - 1] == EOS_ID


@pytest.mark.parametrize("mode", MODES)
def test_thinking_is_in_the_answer_if_and_only_if_it_is_on(mode: Mode) -> None:
    for family in FAMILIES:
        for example in some(family, mode, count=4):
            assert ("</think>" in example.answer) == (mode != "off")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_and_no_wording_is_in_both_splits(family: str) -> None:
    found: dict[str, list[Example]] = {
        split: [item for mode in MODES for item in some(family, mode, split, 60)]  # type: ignore[arg-type]
        for split in ("train", "eval")
    }
    for part in ("values", "wordings"):
        train, held_out = ({text for item in found[split] for text in getattr(item, part)} for split in found)
        assert not train & held_out
    for split, examples in found.items():
        assert {owner(value) for item in examples for value in item.values} <= {split}
    assert all(item.wordings for item in found["eval"])


def test_recall_reaches_the_length_that_is_asked_for() -> None:
    for target in (200, 2000, 4000):
        mix = Mix(families={"recall": 1}, modes={"off": 1}, recall_tokens=(target, target))
        sizes = [make_example(str(seed), "eval", mix).num_prompt_tokens for seed in range(4)]
        assert 0.7 * target < sum(sizes) / len(sizes) < 1.4 * target


def test_longer_examples_than_the_mix_allows_are_left_out() -> None:
    mix = Mix(families={"recall": 1}, recall_tokens=(50, 900), max_tokens=300)
    assert all(len(item.token_ids) <= 300 for item in itertools.islice(stream(1, "train", mix), 20))


def all_wordings(table: dict[str, Any], part: str) -> set[str]:
    """All wordings of a part, in small letters and without punctuation."""
    if part in table:
        return {" ".join(plain_words(line)) for line in table[part].splitlines()}
    return {found for item in table.values() if isinstance(item, dict) for found in all_wordings(item, part)}


def test_held_out_wordings_differ_by_more_than_punctuation() -> None:
    trained = all_wordings(WORDINGS, "train") | all_wordings(MORE, "train")
    assert not trained & all_wordings(WORDINGS, "held_out")


def near_pairs(table: dict[str, Any], more: dict[str, Any]) -> list[tuple[str, str]]:
    """Later training wordings within one word of a held-out one of the same table that has four words or more."""
    if "held_out" not in table:
        return [
            pair
            for name, item in table.items()
            if isinstance(item, dict)
            for pair in near_pairs(item, more.get(name, {}))
        ]
    held_out = [line for line in table["held_out"].splitlines() if len(line.split()) >= 4]
    trained = more.get("train", "").splitlines()
    return [(mine, theirs) for mine in trained for theirs in held_out if words_apart(mine, theirs) <= 1]


def test_later_training_wordings_are_not_near_held_out_ones() -> None:
    assert near_pairs(WORDINGS, MORE) == []


def test_an_earlier_turn_is_trained_only_as_it_was_said() -> None:
    """While thinking, a later prompt shows a sum without its steps: nobody should learn to answer like that."""
    mix = Mix(families={"arithmetic": 1}, modes={"on": 1})
    for example in itertools.islice(stream(3, "train", mix), 60):
        trained = sum(example.loss_mask[: example.num_prompt_tokens])
        history = [item["content"] for item in example.body["messages"] if item["role"] == "assistant"]
        assert not trained or not re.fullmatch(r"\d+ [+-] \d+ = -?\d+", history[0])


def test_half_of_the_training_lists_take_their_keys_from_few_words() -> None:
    firsts = [len({key.split()[0] for key in sample_keys(Draw(str(seed), "train"), 300)}) for seed in range(40)]
    assert 10 <= sum(number <= 34 for number in firsts) <= 30
    assert max(firsts) > 100
    assert all(owner(key) == "train" for seed in range(10) for key in sample_keys(Draw(str(seed), "train"), 50))


def test_a_decision_says_how_the_numbers_stand_and_yes_if_that_was_asked() -> None:
    seen = set()
    for seed in range(200):
        turn = make_decision(Draw(str(seed), "train"), "on").turns[0]
        first, second = map(int, re.findall(r"\d+", turn.user))
        relation = "larger" if first > second else "smaller"
        assert turn.reasoning == turn.content
        if found := DECISION.fullmatch(turn.content):
            asked = "larger" if any(f" {word}" in turn.user for word in LARGER) else "smaller"
            assert found.groups() == (str(first), relation, asked, "yes" if asked == relation else "no")
            seen.add((relation, asked))
        else:
            assert turn.content == f"{first} is {relation} than {second}."
    assert len(seen) == 4
