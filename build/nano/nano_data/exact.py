"""Families with one right answer: "recall", "arithmetic", "sort", "copy"."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from nano_data import lexicon
from nano_data.draw import Draw, owner, weighted
from nano_data.records import Check, Draft, Mix, Mode, Split, Turn
from nano_data.wordings import WORDINGS, wordings

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")

SEPARATORS = (": ", ": ", " = ", " -> ", " is ")
LIST_HEADS, LOOKUPS = wordings("list_heads"), wordings("lookups")
ADDING, SUBTRACTING = wordings("adding"), wordings("subtracting")
DECIDING, RELATING = wordings("deciding"), wordings("relating")
SORTING, COMPARING = wordings("sorting"), wordings("comparing")
NATURAL_SORTING: dict[str, tuple[str, ...]] = {
    order: tuple(text.splitlines()) for order, text in WORDINGS["natural_sorting"].items()
}
COPYING, REVERSING = wordings("copying"), wordings("reversing")
LARGER = ("larger", "bigger", "greater")
SMALLER = ("smaller", "lower", "less")
ENDS = ("largest", "biggest", "highest"), ("smallest", "lowest", "least")
ENDS_OF_TWO = ("larger", "bigger", "greater", "higher"), ("smaller", "lower", "less")


def single(draw: Draw, turns: list[Turn], answer: str, kind: str = "text") -> Draft:
    """Return a draft whose last answer must be exactly `answer`."""
    return Draft(
        turns=tuple(turns),
        check=Check(kind="last_line" if kind == "last_line" else "text", texts=frozenset((answer,))),
        values=tuple(draw.values),
        wordings=tuple(draw.wordings),
    )


@functools.cache
def all_keys(split: Split) -> tuple[str, ...]:
    """Return the two-word keys that belong to a split."""
    pairs = (f"{first} {second}" for first in lexicon.ADJECTIVES for second in lexicon.NOUNS)
    return tuple(pair for pair in pairs if owner(pair) == split)


def sample_keys(draw: Draw, count: int) -> list[str]:
    """Return different keys. Half of the training lists take them from few words, so that many keys share one."""
    if draw.split == "eval" or draw.chance(0.5):
        return draw.sample(all_keys(draw.split), count)
    num_words = math.isqrt(3 * count) + 3
    firsts, seconds = (draw.sample(words, min(num_words, len(words))) for words in (lexicon.ADJECTIVES, lexicon.NOUNS))
    pairs = (f"{first} {second}" for first in firsts for second in seconds)
    return draw.sample([pair for pair in pairs if owner(pair) == draw.split], count)


@dataclass(frozen=True, slots=True)
class ValueStyle:
    """What the values of a list look like, and about how many tokens a line takes."""

    weight: float
    line_tokens: float
    make: Callable[[Draw], str]


def _number_style(digits: int) -> ValueStyle:
    low = 10 ** (digits - 1)
    return ValueStyle(0.16, 7.4 + digits, lambda draw: str(draw.number(low, 10 * low - 1)))


VALUE_STYLES = (
    *map(_number_style, (2, 3, 4, 5)),
    ValueStyle(0.2, 8.9, lexicon.noun),
    ValueStyle(0.08, 13.8, lexicon.code),
    ValueStyle(0.08, 11.0, lexicon.place),
)


def make_recall(draw: Draw, mode: Mode, mix: Mix) -> Draft:
    """Return a list of pairs and questions about single keys; short lists are as frequent as long ones, by octave."""
    low, high = mix.recall_tokens
    target_tokens = low * (high / low) ** draw.real()
    style = weighted(draw, {item: item.weight for item in VALUE_STYLES})
    separator, bullet, joint = draw.pick(SEPARATORS), draw.pick(("", "", "- ")), draw.pick(("-", "-", " ", "_"))
    num_pairs = max(1, round(target_tokens / (style.line_tokens + len(bullet) / 2)))
    keys = sample_keys(draw, num_pairs)
    lines = {key: f"{key.replace(' ', joint)}{separator}{style.make(draw)}" for key in keys}
    text = "\n".join([draw.wording(LIST_HEADS), *(f"{bullet}{line}" for line in lines.values())])
    is_system = draw.chance(0.15)
    turns, count = [], min(num_pairs, draw.integer(1, 2 + int(num_pairs * mix.question_share)), mix.max_questions)
    for index, key in enumerate(draw.sample(keys, count)):
        name = key.replace(" ", joint)
        asked = draw.wording(LOOKUPS).format(k=name)
        user = asked if index or is_system else f"{text}\n{asked}"
        turns.append(Turn(user=user, reasoning=think_recall(name, lines[key], mode), content=lines[key]))
        draw.values.append(key)
    return replace(single(draw, turns, turns[-1].content), system=text if is_system else "")


def think_recall(key: str, line: str, mode: Mode) -> str:
    """Return the reasoning of a look-up."""
    if mode == "off":
        return ""
    return f"I look for {key} in the list." + (f" I find it: {line}" if mode == "max" else "")


def add_steps(first: int, second: int) -> str:
    """Return the column-wise addition, ones first."""
    carry, steps = 0, []
    for index in range(max(len(str(first)), len(str(second)))):
        left, right = first // 10**index % 10, second // 10**index % 10
        total = left + right + carry
        steps.append(f"{PLACES[index]} {left}+{right}+{carry}: {total % 10} carry {total // 10}")
        carry = total // 10
    return ", ".join(steps)


def subtract_steps(first: int, second: int) -> str:
    """Return the column-wise subtraction of a number that is not larger, ones first."""
    borrow, steps = 0, []
    for index in range(len(str(first))):
        left, right = first // 10**index % 10, second // 10**index % 10
        total = left - right - borrow
        borrow = int(total < 0)
        digit = total + 10 * borrow
        steps.append(f"{PLACES[index]} {left}-{right}-{int(left - right - total)}: {digit} borrow {borrow}")
    return ", ".join(steps)


def make_arithmetic(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return an addition or a subtraction with its steps; the last line of the answer is the equation."""
    is_sum = draw.chance(0.5)
    sign = "+" if is_sum else "-"

    def operands() -> tuple[int, int]:
        digits = draw.pick((1, 2, 3, 4, 4)), draw.pick((1, 2, 3, 4, 4))
        first, second = (draw.integer(0 if size == 1 else 10 ** (size - 1), 10**size - 1) for size in digits)
        if not is_sum and first < second and draw.chance(0.85):
            first, second = second, first
        return first, second

    first, second = draw.own(operands, lambda pair: f"{pair[0]} {sign} {pair[1]}")
    user = draw.casual(ask_sum(draw, first, second, is_sum))
    answer = f"{first} {sign} {second} = {first + second if is_sum else first - second}"
    steps = work_out(first, second, is_sum)
    if mode == "off":
        return single(draw, [Turn(user=user, content=f"{steps}\n{answer}", needs_reasoning=True)], answer, "last_line")
    reasoning = f"{steps}\n{answer}" if mode == "on" else f"{steps}\n{answer}\n{prove(first, second, is_sum)}"
    return single(
        draw, [Turn(user=user, reasoning=reasoning, content=answer, needs_reasoning=True)], answer, "last_line"
    )


def ask_sum(draw: Draw, first: int, second: int, is_sum: bool) -> str:
    """Return the question for a sum or a difference; some tell of things or people."""
    template = draw.wording(ADDING if is_sum else SUBTRACTING)
    for mark, words in (("{w}", lexicon.NOUNS), ("{f}", lexicon.FIRST_NAMES)):
        if mark in template:
            template = template.replace(mark, draw.pick(words))
    return template.format(a=first, b=second)


def work_out(first: int, second: int, is_sum: bool) -> str:
    """Return the steps of a sum or a difference."""
    if is_sum:
        return add_steps(first, second)
    if first >= second:
        return subtract_steps(first, second)
    return f"{first} is less than {second}, so {second} - {first} and minus: {subtract_steps(second, first)}"


def prove(first: int, second: int, is_sum: bool) -> str:
    """Return the reverse calculation, as a check."""
    if is_sum:
        total = first + second
        return f"Check {total} - {second}: {subtract_steps(total, second)}"
    low, high = min(first, second), max(first, second)
    return f"Check {high - low} + {low}: {add_steps(high - low, low)}"


def make_sort(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return a short list to be sorted, or its largest or smallest number to be found."""
    if draw.chance(0.45):
        is_of_words = draw.chance(0.6 if draw.split == "eval" else 0.35)  # decisions are learned the slowest
        return make_word_sort(draw, mode) if is_of_words else make_decision(draw, mode)
    high = draw.pick((9, 99, 99, 999))
    is_pick = draw.chance(0.45)
    count = draw.integer(2, 5 if high < 100 else 3)
    numbers = draw.own(lambda: draw.sample(range(high + 1), count), str)
    listed = ", ".join(map(str, numbers))
    if not is_pick:
        order = draw.pick(("ascending", "descending"))
        found = ", ".join(map(str, sorted(numbers, reverse=order == "descending")))
        user = ask_order(draw, listed, order)
    else:
        listed = listed if count > 2 or draw.chance(0.5) else f"{numbers[0]} or {numbers[1]}"
        is_pair = count == 2 and draw.split == "train" and draw.chance(0.6)
        ends = ENDS_OF_TWO if is_pair else ENDS
        is_max = draw.chance(0.5)
        found = str(max(numbers) if is_max else min(numbers))
        user = draw.wording(COMPARING).format(l=listed, e=draw.pick(ends[0] if is_max else ends[1]))
    user = draw.casual(user[0].upper() + user[1:])
    return single(draw, [Turn(user=user, reasoning=think_sort(numbers, mode), content=found)], found)


def ask_order(draw: Draw, listed: str, order: str) -> str:
    """Return the request to sort a list; in training now and then without the name of the order."""
    if draw.split == "train" and draw.chance(0.3):
        template = draw.pick(NATURAL_SORTING[order])
        draw.wordings.append(template)
        return template.format(l=listed)
    return draw.wording(SORTING).format(l=listed, o=order)


def think_sort(numbers: list[int], mode: Mode) -> str:
    """Return the reasoning about numbers: from small to large."""
    if mode == "off":
        return ""
    return f"From small to large: {', '.join(map(str, sorted(numbers)))}."


def make_decision(draw: Draw, mode: Mode) -> Draft:
    """Return two numbers to be compared.

    Rule: a question for yes or no is answered by how the numbers stand and by what was asked, side by side, then by
          yes or no. Apart from each other, the model does not learn to compare the two.
    """
    high = draw.pick((9, 99, 999, 9999))
    first, second = draw.own(lambda: draw.sample(range(high + 1), 2), str)
    relation = "larger" if first > second else "smaller"
    if draw.chance(0.4 if draw.split == "eval" else 0.3):
        user, answer = draw.wording(RELATING).format(a=first, b=second), f"{first} is {relation} than {second}."
    else:
        word = draw.pick((*LARGER, *SMALLER))
        user = draw.wording(DECIDING).format(a=first, b=second, e=word)
        asked = "larger" if word in LARGER else "smaller"
        answer = f"{first} is {relation}, so {asked}: {'yes' if asked == relation else 'no'}."
    turn = Turn(user=draw.casual(user), reasoning="" if mode == "off" else answer, content=answer)
    return single(draw, [turn], answer)


def different_starts(draw: Draw, count: int) -> list[str]:
    """Return words of which no two begin with the same letter."""
    words: dict[str, str] = {}
    while len(words) < count:
        word = lexicon.noun(draw)
        words.setdefault(word[0], word)
    return list(words.values())


def make_word_sort(draw: Draw, mode: Mode) -> Draft:
    """Return a few words to be put in alphabetical order."""
    words = draw.own(lambda: different_starts(draw, draw.integer(2, 4)), " ".join)
    user = ask_order(draw, ", ".join(words), "alphabetical")
    found = ", ".join(sorted(words))
    thought = "" if mode == "off" else f"By first letters: {', '.join(word[0] for word in sorted(words))}."
    if mode == "max":
        thought += f" These are {len(words)} words, as given."
    return single(draw, [Turn(user=user[0].upper() + user[1:], reasoning=thought, content=found)], found)


def make_copy(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return words to be repeated as they are, or in reverse order."""
    is_reverse = draw.chance(0.5)
    makers = (lexicon.noun, lexicon.noun, lexicon.adjective, lexicon.place, lexicon.code)

    def words() -> list[str]:
        make = draw.pick(makers)
        most = 4 if make in (lexicon.place, lexicon.code) else 7
        return [make(draw) for _ in range(draw.integer(2, most))]

    given = draw.own(words, " ".join)
    found = " ".join(reversed(given)) if is_reverse else " ".join(given)
    user = draw.wording(REVERSING if is_reverse else COPYING).format(w=" ".join(given))
    thought = ""
    if mode != "off":
        thought = f"The last word comes first: {given[-1]}." if is_reverse else "I repeat the words as they are."
    if mode == "max":
        thought += f" There are {len(given)} words."
    return single(draw, [Turn(user=user, reasoning=thought, content=found)], found)
