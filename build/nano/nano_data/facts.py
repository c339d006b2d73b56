"""Part of the family "everyday": what a user tells about, asked for at once or later."""

from __future__ import annotations

from nano_data.calling import capital
from nano_data.common import COMMON
from nano_data.draw import Draw
from nano_data.records import Check, Draft, Mode, Turn
from nano_data.slots import KINDS
from nano_data.talk import UNKNOWN, equivalents, unanswered
from nano_data.wordings import wordings

TELLING, ASKING = wordings("fact_telling"), wordings("fact_asking")
NOTED = "I keep that in mind."
WHOSE = {"my": "your", "our": "your", "the": "the"}
SUBJECTS = {
    **dict.fromkeys(("name", "boss", "brother", "doctor", "friend", "neighbor", "teacher", "wife"), "person"),
    **dict.fromkeys(("city", "town", "home town"), "place"),
    **dict.fromkeys(("code", "password", "pin", "door code", "order number", "room number", "flight"), "code"),
    **dict.fromkeys(("number", "lucky number", "house number", "phone number"), "number"),
    **dict.fromkeys(("dog", "cat", "team", "project", "word", "secret word", "server", "branch"), "word"),
    **dict.fromkeys(("birthday", "date", "deadline"), "when"),
    **dict.fromkeys(("email", "email address"), "email"),
    **dict.fromkeys(("color", "favorite color"), "color"),
    **dict.fromkeys(("song", "book", "favorite song", "hotel"), "named"),
}
KIND = {**COMMON, "color": KINDS["color"]}


def make_facts(draw: Draw, mode: Mode) -> Draft:
    """Return one to three facts and a question for one of them, or now and then for another one."""
    names = draw.sample(list(SUBJECTS), draw.integer(2, 4))
    whose = draw.pick(("my", "my", "the", "our"))
    asked, told = names[0], names[1:] if draw.chance(0.15) else names[:-1]
    values = {name: str(KIND[SUBJECTS[name]].sample(draw)) for name in told}
    said = draw.sample(list(values.items()), len(values))
    text = " ".join(draw.wording(TELLING).format(o=whose, n=name, v=value) for name, value in said)
    question = draw.casual(capital(draw.wording(ASKING).format(o=whose, n=asked)))
    turn = unanswered(question, mode, is_task=False)
    if asked in values:
        thought = "" if mode == "off" else f"I was told that {WHOSE[whose]} {asked} is {values[asked]}."
        turn = Turn(user=question, reasoning=thought, content=capital(f"{WHOSE[whose]} {asked} is {values[asked]}."))
    text = ". ".join(capital(part) for part in text.split(". "))
    if draw.chance(0.4):
        noted = "" if mode == "off" else "The user tells me something."
        turns: tuple[Turn, ...] = (Turn(user=text, reasoning=noted, content=NOTED), turn)
    else:
        turns = (Turn(user=f"{text} {turn.user}", reasoning=turn.reasoning, content=turn.content),)
    texts = equivalents(UNKNOWN) if turn.content == UNKNOWN else frozenset((turn.content,))
    return Draft(
        turns=turns,
        check=Check(kind="text", texts=texts),
        values=tuple(draw.values),
        wordings=tuple(draw.wordings),
    )
