"""Values as people give them to everyday tools: common words, coined ones, times, sums, paths, commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nano_data import lexicon
from nano_data.coined import coined
from nano_data.draw import Draw
from nano_data.records import Json
from nano_data.slots import KINDS, Kind

WORDS = tuple(
    """a about after again all always an any are as ask at away back bad bag ball be because bed before best
    big bill birthday both box boy brother bug buy by cake call can car card cat change check child city class code
    coffee cold come cook cost cup day dinner do doctor dog done down drink drive each early eat egg email end error
    every family far father feed few fill find fish fix food for friend from fun game get gift girl give go good great
    group grow hair half hand have he head help her here high hold home hot hour how idea if important in is it job join
    keep key kids know late learn leave left less let letter life like list live long look lost lot love low make man
    market maybe me meet meeting milk mom money more morning most mother move much music my name need never new next
    nice night no not note now number of off office ok old on one only open order our out over paper park part party
    pay people phone photo pick place plan plants play please post price problem project put question rain read ready
    real rent report rice right road room run said salt same save say school see sell send she shop show side sister sit
    sleep slow small so some song soon speak start stay still stop store story street sugar sun sure take talk tax tea
    team tell test than thanks that the their them there they thing think this time to today tomorrow tonight too
    town train travel try turn two under until up us use very visit wait walk wall want wash watch water way we week
    weekend well what when where which who why will window wish with word work world write year yes you your""".split()
)
ENDINGS = "com dev io net org co.uk de"
FOLDERS = "src lib app docs data tests config build home tmp var etc assets scripts"
SUFFIXES = "py txt md json csv yaml toml js ts html css cpp rs go sh log pdf png ini"
COMMANDS = "ls cat git make pip npm docker python pytest grep cargo curl echo cd rm mkdir head tail"
DAYS = "today tomorrow Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
Maker = Callable[[Draw], Json]


def word(draw: Draw) -> str:
    """Return a word: common, from the lexicon, or coined."""
    move = draw.real()
    if move < 0.45:
        return draw.pick(WORDS)
    return coined(draw) if move < 0.75 else draw.pick((draw.pick(lexicon.NOUNS), draw.pick(lexicon.ADJECTIVES)))


def words(draw: Draw, fewest: int, most: int) -> str:
    """Return some words, now and then with a number, a capital letter or capital letters throughout."""
    found = [str(draw.integer(1, 2030)) if draw.chance(0.06) else word(draw) for _ in range(draw.integer(fewest, most))]
    text, move = " ".join(found), draw.real()
    return text.title() if move < 0.1 else text[:1].upper() + text[1:] if move < 0.4 else text


def title(draw: Draw) -> str:
    """Return the name of a song, a film or a place to eat."""
    return words(draw, 1, 3).title()


def things(draw: Draw) -> list[str]:
    """Return one to four different things."""
    return list(dict.fromkeys(word(draw) for _ in range(draw.integer(1, 4))))


def place(draw: Draw) -> str:
    """Return a city: known, of syllables, or of any letters."""
    if draw.chance(0.3):
        return draw.pick(lexicon.CITIES)
    name = coined(draw).capitalize() if draw.chance(0.5) else lexicon.place(draw)
    return f"{draw.pick(('San', 'New', 'Los', 'Port', 'Saint'))} {name}" if draw.chance(0.12) else name


def person(draw: Draw) -> str:
    """Return a first name, or a full name."""
    first = draw.pick(lexicon.FIRST_NAMES) if draw.chance(0.6) else coined(draw).capitalize()
    last = lexicon.surname(draw) if draw.chance(0.5) else coined(draw).capitalize()
    return f"{first} {last}" if draw.chance(0.4) else first


def persons(draw: Draw) -> list[str]:
    """Return one to three different names."""
    return list(dict.fromkeys(person(draw) for _ in range(draw.integer(1, 3))))


def email(draw: Draw) -> str:
    """Return an address such as ann.brick@example.org."""
    name = person(draw).lower().replace(" ", draw.pick((".", "_", "")))
    host = draw.pick(("example", "mail", coined(draw), coined(draw), draw.pick(lexicon.NOUNS)))
    return f"{name}@{host}.{draw.pick(ENDINGS.split())}"


def clock(draw: Draw) -> str:
    """Return a time such as 7:30, 18:00 or 6 pm."""
    if draw.chance(0.25):
        return f"{draw.integer(1, 12)}{draw.pick((' ', ''))}{draw.pick(('am', 'pm'))}"
    hour = draw.integer(0, 23)
    return f"{hour:02}:{draw.integer(0, 59):02}" if draw.chance(0.6) else f"{hour}:{draw.integer(0, 11) * 5:02}"


def day(draw: Draw) -> str:
    """Return a day such as 2026-03-14, tomorrow, next Friday or March 3."""
    move = draw.real()
    if move < 0.6:
        return f"20{draw.integer(20, 39)}-{draw.integer(1, 12):02}-{draw.integer(1, 31):02}"
    if move < 0.85:
        return f"{draw.pick(('', '', 'next '))}{draw.pick(DAYS.split()[2:])}" if draw.chance(0.6) else "tomorrow"
    return f"{draw.pick(MONTHS.split())} {draw.integer(1, 31)}"


def expression(draw: Draw) -> str:
    """Return a sum such as 12 * 7 or (3 + 4) / 2."""
    blank, sign = draw.pick((" ", " ", "")), draw.pick("+-*/")
    parts = [str(draw.number(1, 999)) for _ in range(2)]
    if draw.chance(0.3):
        return f"({parts[0]}{blank}{sign}{blank}{parts[1]}){blank}{draw.pick('*/')}{blank}{draw.number(2, 20)}"
    return f"{parts[0]}{blank}{sign}{blank}{parts[1]}"


def folder(draw: Draw) -> str:
    """Return a path of folders such as src/models or ./docs."""
    names = [draw.pick((draw.pick(FOLDERS.split()), word(draw))) for _ in range(draw.integer(1, 2))]
    return draw.pick(("", "", "", "./", "/")) + "/".join(names)


def path(draw: Draw) -> str:
    """Return a file such as src/main.py or README.md."""
    stem = word(draw) if draw.chance(0.7) else f"{word(draw)}{draw.pick('_-')}{word(draw)}"
    stem = stem.upper() if draw.chance(0.05) else stem
    return f"{folder(draw)}/" * draw.chance(0.55) + f"{stem}.{draw.pick(SUFFIXES.split())}"


def command(draw: Draw) -> str:
    """Return a command such as git status or ls -la src."""
    parts = [draw.pick(COMMANDS.split())]
    parts += [draw.pick(("status", "install", "run", "test", "-la", "-v", "--help", word(draw)))] * draw.chance(0.7)
    return " ".join([*parts, *[draw.pick((path, folder, word))(draw)] * draw.chance(0.5)])


def url(draw: Draw) -> str:
    """Return an address such as https://example.org/page."""
    host = f"{draw.pick(('', '', 'www.'))}{draw.pick(('example', word(draw), coined(draw)))}"
    rest = f"/{word(draw)}" * draw.chance(0.5) + draw.pick(("", "", ".html", "/"))
    return f"{draw.pick(('https', 'https', 'http'))}://{host}.{draw.pick(ENDINGS.split())}{rest}"


def sql(draw: Draw) -> str:
    """Return a query such as SELECT name FROM users."""
    rest = f" WHERE {word(draw)} = {draw.integer(1, 99)}" if draw.chance(0.4) else ""
    return f"SELECT {draw.pick(('*', word(draw), 'count(*)'))} FROM {word(draw)}{rest}"


def code(draw: Draw) -> str:
    """Return the number of an order, such as A-1234, 5512 or 881-ZK."""
    letters = "".join(draw.pick(lexicon.CODE_LETTERS) for _ in range(draw.integer(1, 3)))
    digits = str(draw.number(10, 99999))
    return draw.pick((f"{letters}-{digits}", f"{letters}{digits}", digits, f"{digits}-{letters}"))


def label(draw: Draw) -> str:
    """Return a name such as web, fix-login or api_v2."""
    move = draw.real()
    if move < 0.4:
        return word(draw)
    return f"{word(draw)}{draw.pick('-_/')}{word(draw)}" if move < 0.85 else f"{word(draw)}-{draw.integer(1, 99)}"


def amount(draw: Draw) -> Json:
    """Return a number, half of them with a decimal."""
    return draw.number(1, 2000) if draw.chance(0.6) else draw.number(1, 900) + draw.integer(1, 9) / 10


def _own(make: Maker, kind: str = "string") -> Kind:
    schema: dict[str, Json] = {"type": kind}
    if kind == "array":
        schema["items"] = {"type": "string"}
    return Kind(names=(), schema=schema, sample=lambda draw: draw.own(lambda: make(draw)))


def _small(low: int, high: int, kind: str = "integer") -> Kind:
    return Kind(names=(), schema={"type": kind}, sample=lambda draw: draw.integer(low, high))


def _one_of(options: str, *, is_listed: bool = True) -> Kind:
    values = options.split()
    schema = {"type": "string", "enum": values} if is_listed else {"type": "string"}
    return Kind(names=(), schema=schema, sample=lambda draw: draw.pick(values))


COMMON: Mapping[str, Kind] = {
    **{name: KINDS[name] for name in ("unit", "currency", "priority", "level", "days", "limit", "people", "minutes")},
    **{name: _own(make) for name, make in (("place", place), ("person", person), ("email", email), ("clock", clock))},
    **{name: _own(make) for name, make in (("when", day), ("moment", clock), ("named", title), ("path", path))},
    **{name: _own(make) for name, make in (("folder", folder), ("command", command), ("url", url), ("sql", sql))},
    **{name: _own(make) for name, make in (("code", code), ("label", label), ("word", word), ("thing", word))},
    "phrase": _own(lambda draw: words(draw, 1, 4)),
    "text": _own(lambda draw: words(draw, 2, 7)),
    "expression": _own(expression),
    "version": _own(lambda draw: ".".join(str(draw.integer(0, 30)) for _ in range(draw.integer(2, 3)))),
    "ticker": _own(lambda draw: "".join(draw.pick(lexicon.CODE_LETTERS) for _ in range(draw.integer(2, 5)))),
    "things": _own(things, "array"),
    "people_list": _own(persons, "array"),
    "number": _own(lambda draw: draw.number(20, 99999), "integer"),
    "amount": _own(amount, "number"),
    "price": _own(lambda draw: draw.number(5, 2000), "number"),
    "year": _own(lambda draw: draw.number(1900, 2039), "integer"),
    "lines": _small(5, 300),
    "quantity": _small(1, 30),
    "small": _small(0, 9),
    "degrees": _small(5, 30, "number"),
    "language": _one_of("English German French Spanish Italian Dutch Polish Greek Turkish Swedish", is_listed=False),
    "room": _one_of("kitchen bedroom office garage bathroom hall attic cellar garden", is_listed=False),
    "travel": _one_of("car train bus bike foot"),
    "measure": _one_of("meters feet miles kilometers inches grams pounds liters cups hours minutes", is_listed=False),
    "stage": _one_of("production staging testing"),
    "bool": Kind(names=(), schema={"type": "boolean"}, sample=lambda draw: draw.chance(0.5)),
}
