"""Families "greet" and "unknown": small talk, what the model is, and the honest answer to everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nano_data import lexicon
from nano_data.draw import Draw, Wordings
from nano_data.records import Check, Draft, Mix, Mode, Turn
from nano_data.wordings import WORDINGS, all_divided, wordings

UNKNOWN = "I do not know that. I am a very small model."
UNABLE = "I cannot do that. I am a very small model."


@dataclass(frozen=True, slots=True)
class Topic:
    """A kind of small talk: how it is said, what is thought, and the right answer."""

    thought: str
    reply: str
    said: Wordings


TOPICS = tuple(
    Topic(WORDINGS["topics"][name]["thought"], WORDINGS["topics"][name]["reply"], said)
    for name, said in all_divided("topics").items()
)
QUESTIONS, TASKS = wordings("questions"), wordings("tasks")
LEADS, SYSTEMS = wordings("leads"), wordings("chat_systems")


def greeting(draw: Draw, mode: Mode) -> Turn:
    """Return a turn of small talk."""
    topic = draw.pick(TOPICS)
    user = draw.wording(topic.said).replace("{f}", draw.pick(lexicon.FIRST_NAMES))
    thought = "" if mode == "off" else topic.thought
    if mode == "max":
        thought += " No tool or fact is needed. I answer kindly."
    return Turn(user=user, reasoning=thought, content=topic.reply)


def question(draw: Draw, mode: Mode) -> Turn:
    """Return a turn that asks for something the model does not know or cannot do."""
    is_task = draw.chance(0.35)
    template = draw.wording(TASKS if is_task else QUESTIONS)
    lead = draw.wording(LEADS) if draw.chance(0.4) else "{q}"
    return unanswered(draw.casual(fill_in(draw, lead.replace("{q}", template))), mode, is_task=is_task)


def unanswered(user: str, mode: Mode, *, is_task: bool) -> Turn:
    """Return the turn in which something is asked that the model does not know, or cannot do."""
    thought = ""
    if mode != "off":
        thought = "The user wants a work of art or skill." if is_task else "The user asks for a fact."
        thought += " I cannot do that." if is_task else " I do not know it."
    if mode == "max":
        thought += " Nothing in the prompt gives the answer. I must not guess."
    return Turn(user=user, reasoning=thought, content=UNABLE if is_task else UNKNOWN)


def fill_in(draw: Draw, template: str) -> str:
    """Return the template with names and words put in."""
    makers: dict[str, Callable[[], str]] = {
        "{p}": lambda: draw.own(lambda: lexicon.place(draw)),
        "{r}": lambda: draw.own(lambda: lexicon.place(draw)),
        "{n}": lambda: draw.own(lambda: lexicon.person(draw)),
        "{t}": lambda: draw.own(lambda: f'"{lexicon.phrase(draw)}"'),
        "{w}": lambda: draw.pick(lexicon.NOUNS),
        "{v}": lambda: draw.pick(lexicon.NOUNS),
        "{j}": lambda: draw.pick(lexicon.ADJECTIVES),
        "{y}": lambda: str(draw.integer(100, 2030)),
    }
    for mark, make in makers.items():
        if mark in template:
            template = template.replace(mark, make())
    return template


def small_talk(draw: Draw, mode: Mode) -> Turn:
    """Return a greeting or an unanswerable question."""
    return greeting(draw, mode) if draw.chance(0.5) else question(draw, mode)


def equivalents(content: str) -> frozenset[str]:
    """Return all answers that are as right as this one."""
    if content in (UNKNOWN, UNABLE):
        return frozenset((UNKNOWN, UNABLE))
    return frozenset((content,))


def _conclude(draw: Draw, turns: list[Turn]) -> Draft:
    return Draft(
        turns=tuple(turns),
        check=Check(kind="text", texts=equivalents(turns[-1].content)),
        values=tuple(draw.values),
        wordings=tuple(draw.wordings),
        system=draw.wording(SYSTEMS) if draw.chance(0.3) else "",
    )


def make_greet(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return small talk of one or two turns."""
    return _conclude(draw, [greeting(draw, mode) for _ in range(draw.pick((1, 1, 2)))])


def make_unknown(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return a question to which the honest answer is that the model does not know."""
    before = [small_talk(draw, mode)] if draw.chance(0.25) else []
    return _conclude(draw, [*before, question(draw, mode)])
