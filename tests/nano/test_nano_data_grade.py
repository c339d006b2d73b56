"""Grading: the truth is accepted, near misses are not."""

from __future__ import annotations

import itertools
import json

import pytest
from nano_data import FAMILIES, MODES, Call, Example, Grader, Mix, Mode, grade, stream
from nano_data.render import TOKENIZER_FILE

CASES = list(itertools.product(FAMILIES, MODES))
GRADER = Grader()


def some(family: str, mode: Mode, count: int = 10) -> list[Example]:
    mix = Mix(families={family: 1}, modes={mode: 1})
    return list(itertools.islice(stream(11, "eval", mix), count))


def calling(mode: Mode = "off") -> Example:
    """An example whose answer is one call with a text among its arguments."""
    for example in some("tools", mode, 200):
        calls = example.check.calls
        if len(calls) == 1 and any(isinstance(value, str) for value in calls[0].arguments.values()):
            return example
    raise AssertionError("no such example")


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_the_truth_is_correct_as_tokens_and_as_text(family: str, mode: Mode) -> None:
    for example in some(family, mode):
        assert grade(example, example.token_ids[example.num_prompt_tokens :]).is_correct
        assert grade(example, example.answer).is_correct


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_an_answer_that_does_not_end_is_wrong(family: str, mode: Mode) -> None:
    for example in some(family, mode, 3):
        assert not grade(example, example.token_ids[example.num_prompt_tokens : -1]).is_correct


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_the_answer_to_another_question_is_wrong(family: str, mode: Mode) -> None:
    examples = some(family, mode, 30)
    for first, second in itertools.pairwise(examples):
        is_same = first.check == second.check
        assert grade(first, second.answer).is_correct == is_same


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_read_back_by_the_official_parser(mode: Mode) -> None:
    for example in some("parallel", mode, 20):
        if example.check.calls:
            reply = GRADER.read(example.body, example.token_ids[example.num_prompt_tokens : -1])
            assert [Call(name=name, arguments=values) for name, values in reply.calls] == list(example.check.calls)


def test_another_argument_is_wrong_though_it_fits_the_schema() -> None:
    example = calling()
    value = next(item for item in example.check.calls[0].arguments.values() if isinstance(item, str))
    verdict = grade(example, example.answer.replace(f">{value}<", f">{value}x<"))
    assert not verdict.is_correct
    assert verdict.parses


def test_a_number_given_as_text_fits_no_schema() -> None:
    for example in some("tools", "off", 200):
        wrong = example.answer.replace('string="false"', 'string="true"')
        if wrong != example.answer:
            assert not grade(example, wrong).matches_schema
            return
    pytest.fail("no call with a number")


def test_a_tool_that_is_not_there_fits_no_schema() -> None:
    example = calling()
    name = example.check.calls[0].name
    assert not grade(example, example.answer.replace(f'invoke name="{name}"', 'invoke name="other"')).matches_schema


def test_markup_that_is_cut_off_does_not_parse() -> None:
    example = calling()
    assert not grade(example, example.answer.partition("<｜DSML｜parameter")[0]).parses


def test_reasoning_that_never_ends_does_not_parse() -> None:
    example = calling("on")
    assert not grade(example, example.answer.replace("</think>", "")).parses


def test_the_order_of_parallel_calls_is_free() -> None:
    for example in some("parallel", "off", 40):
        if len(example.check.calls) == 2:
            head, first, second = example.answer.split("<｜DSML｜invoke")
            end = "</｜DSML｜tool_calls>"
            swapped = "<｜DSML｜invoke".join([head, second.removesuffix(end), first + end])
            assert grade(example, swapped).is_correct
            return
    pytest.fail("no parallel call")


def test_a_missing_key_fits_no_schema() -> None:
    example = some("json", "off")[0]
    found = json.loads(example.answer)
    found.popitem()
    assert not grade(example, json.dumps(found)).matches_schema


def test_any_spelling_of_the_same_object_is_correct() -> None:
    example = some("json", "off")[0]
    found = dict(reversed(json.loads(example.answer).items()))
    assert grade(example, json.dumps(found, indent=2)).is_correct


def test_wrong_steps_do_not_matter_but_a_wrong_sum_does() -> None:
    example = some("arithmetic", "off")[0]
    steps, _, equation = example.answer.rpartition("\n")
    assert grade(example, f"never mind\n{equation}").is_correct
    assert not grade(example, f"{steps}\n{equation}0").is_correct


def test_a_grader_takes_any_tokenizer() -> None:
    example = some("sort", "off")[0]
    assert Grader(TOKENIZER_FILE).grade(example, example.answer).is_correct
