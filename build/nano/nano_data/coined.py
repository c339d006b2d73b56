"""Words that nobody knows, spelled like English: their letters have to be copied."""

from __future__ import annotations

from nano_data.draw import Draw

ONSETS = tuple(
    """b bl br c ch cl cr d dr f fl fr g gl gr h j k kn l m n p ph pl pr qu r s sc sh sl sm sn sp st str t th tr v w y
    z""".split()
)
VOWELS = tuple("a e i o u a e i o u ai au ea ee ie oa oo ou y".split())
CODAS = tuple("b ck d f g l ll m mp n nd ng nk nt p r rd rk rm rn rt s ss st t th tch x".split())
ENDS = tuple(
    """able al ance ant ate ed en ence er ers es est ful ify ing ion ism ist ity ive less ly ment ness ory ous s tion
    ure y""".split()
)


def coined(draw: Draw) -> str:
    """Return a word that looks English and is mostly none, so that its letters have to be copied."""
    syllables = draw.pick((1, 1, 2, 2, 2, 3))
    word = ""
    for _ in range(syllables):
        word += draw.pick(ONSETS) if word or draw.chance(0.8) else ""
        word += draw.pick(VOWELS) + (draw.pick(CODAS) if draw.chance(0.5) else "")
    return word + draw.pick(ENDS) if draw.chance(0.35) else word
