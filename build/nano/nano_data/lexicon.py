"""Words and made-up names. Syllables give far more names than any list, so a model must copy them, not know them."""

from __future__ import annotations

from collections.abc import Sequence

from nano_data.coined import coined
from nano_data.draw import Draw

ADJECTIVES = tuple(
    """amber ample azure basic blue bold brave brief bright broad bronze brown calm chief clean clear clever cold cool
    coral crimson crisp dark deep dense double dry dull early eager east empty equal even fair false fancy fast final
    fine firm first flat fond formal free fresh full gentle giant glad gold grand grave gray great green happy hard
    heavy hidden high hollow honest huge humble icy idle inner ivory jade jolly just keen kind large last late lazy
    lean level light little lively local lone long loud low loyal lucky major merry mild minor misty modern narrow neat
    new noble noisy north novel odd olive open orange outer pale patient plain polite prime proud pure purple quick
    quiet rapid rare raw red rich ripe rosy rough round royal ruby rural safe scarlet shady sharp short shy silent
    silver simple single slim slow small smart smooth snowy soft solid south spare steady steep still strong sunny
    sweet swift tall tame teal tidy tiny tough true upper urban vast violet vivid warm west white whole wide wild wise
    yellow young""".split()
)
NOUNS = tuple(
    """acorn anchor apple arrow badge banjo barn basin basket bean bear beaver bell bench berry bird boat book bottle
    bowl bread brick bridge brook brush bucket button cabin cactus camel camera candle canoe canyon carpet castle cedar
    chair cherry circle cliff clock cloud clover coat comet compass copper cotton cove crane crater creek crow crown
    daisy dawn deer delta desert dolphin door dragon drum eagle echo elm ember falcon feather fern field finch flag
    flame flute forest fox frog garden gate glacier globe goat grape harbor hawk hazel heron hill honey horse house
    island jacket jungle kettle kite koala ladder lake lamp lantern leaf lemon lily lion lizard lotus maple marble
    meadow melon mirror moon moss mountain needle nest oak ocean orchid otter owl panda paper parrot peach pearl pebble
    pencil pepper pillow pine planet plum pond poppy quill rabbit raven reef ribbon river robin rocket rose saddle sail
    salmon shell ship shore sparrow spoon spring spruce star stone storm stream summit sunset swan table temple thistle
    thunder tiger torch tower train trumpet tulip tunnel turtle valley velvet violin wagon walnut whale wheat willow
    window wolf wren zebra""".split()
)
FIRST_NAMES = tuple(
    """Ada Alan Alice Amir Ana Ben Bo Carl Chen Clara Dan Dora Eli Elsa Emma Erik Eva Fay Finn Gina Hana Hugo Ida Igor
    Ines Ivan Jack Jane Joe June Kai Kate Ken Lara Leo Lena Lin Lisa Liu Luca Lucy Mara Marc Maya Mia Milo Mona Nadia
    Nick Nina Noah Nora Olga Omar Oscar Otto Paul Petra Priya Ravi Rita Rosa Sam Sara Sofia Tara Theo Tim Tom Uma Vera
    Viktor Wei Yara Yuki Zoe""".split()
)
CITIES = tuple(
    """Amsterdam Athens Austin Berlin Boston Cairo Chicago Delhi Denver Dublin Geneva Hamburg Helsinki Lagos Lima Lisbon
    London Lyon Madrid Miami Milan Munich Nairobi Oslo Paris Porto Prague Rome Seattle Seoul Sydney Tokyo Toronto Turin
    Vienna Warsaw Zurich""".split()
)
ONSETS = tuple(
    """bar bel bran cal cor dal den dor dun el fal fen gar gil hal hol jor kal kel lan lor mal mar mel mor nar nor or
    pel per quin ral ros sal sel tal tar tor ul val var ven wal wen wil yor zan""".split()
)
PLACE_ENDS = tuple("a burg by dale field ford ham haven land mouth o port stad ton via ville wick".split())
SURNAME_ENDS = tuple("ado berg er es ett ez in ini ley man nen ov sen ski son ton ward well".split())
TOPICS = tuple("budget design launch lunch party plan report review sales team test training travel update".split())
COINED_SHARE = 0.12  # of the plain words, in training
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def place(draw: Draw) -> str:
    """Return the name of a place, mostly made up."""
    if draw.chance(0.2):
        return draw.pick(CITIES)
    middle = draw.pick(ONSETS) if draw.chance(0.5) else ""
    return (draw.pick(ONSETS) + middle + draw.pick(PLACE_ENDS)).capitalize()


def surname(draw: Draw) -> str:
    """Return a made-up family name."""
    return (draw.pick(ONSETS) + draw.pick(SURNAME_ENDS)).capitalize()


def person(draw: Draw) -> str:
    """Return a first name, mostly with a family name."""
    first = draw.pick(FIRST_NAMES)
    return f"{first} {surname(draw)}" if draw.chance(0.7) else first


def code(draw: Draw) -> str:
    """Return a code such as KX-482."""
    letters = "".join(draw.pick(CODE_LETTERS) for _ in range(draw.integer(1, 3)))
    return f"{letters}-{draw.number(10, 9999)}"


def email(draw: Draw) -> str:
    """Return an address such as nora@falcon.org."""
    return f"{draw.pick(FIRST_NAMES).lower()}@{noun(draw)}.{draw.pick(('com', 'org', 'net'))}"


def date(draw: Draw) -> str:
    """Return a day such as 2026-03-14."""
    return f"20{draw.integer(24, 31)}-{draw.integer(1, 12):02}-{draw.integer(1, 28):02}"


def clock(draw: Draw) -> str:
    """Return a time such as 14:30."""
    return f"{draw.integer(6, 22):02}:{draw.integer(0, 11) * 5:02}"


def phrase(draw: Draw) -> str:
    """Return two to four plain words."""
    words = [adjective(draw), noun(draw)]
    if draw.chance(0.5):
        words.append(draw.pick(TOPICS))
    if draw.chance(0.3):
        words.insert(0, adjective(draw))
    return " ".join(words)


def file_name(draw: Draw) -> str:
    """Return a path such as plans/river.txt."""
    folder = f"{draw.pick(TOPICS)}/" if draw.chance(0.6) else ""
    return f"{folder}{noun(draw)}.{draw.pick(('txt', 'csv', 'md', 'pdf', 'json'))}"


def label(draw: Draw) -> str:
    """Return a name such as amber-fox."""
    return f"{adjective(draw)}-{noun(draw)}"


def noun(draw: Draw) -> str:
    """Return one plain noun; in training now and then one that nobody knows."""
    return plain_or_coined(draw, NOUNS)


def adjective(draw: Draw) -> str:
    """Return one plain adjective; in training now and then one that nobody knows."""
    return plain_or_coined(draw, ADJECTIVES)


def plain_or_coined(draw: Draw, words: Sequence[str]) -> str:
    """Return one of the words. Rule: what evaluation asks does not depend on the share of coined ones."""
    return coined(draw) if draw.split == "train" and draw.chance(COINED_SHARE) else draw.pick(words)
