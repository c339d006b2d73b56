"""Train the tokenizer of the small trained model on the words of its own conversations, and write tokenizer.json.

    python build/nano/tokenizer.py [OUT.json] [--size 2048] [--count]

words.json holds how often each word occurred in the conversations when the bundled tokenizer was trained: wordings and
thoughts may change later without changing the tokens that weights depend on. --count counts again first.
Digits are never merged: V4's pre-tokeniser cuts numbers into groups of three, and single digits are what a small model
can add and copy. The words of what every prompt shows, such as the usage text of tools, count as often as they occur.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tokenizer")]

import make_tokenizer as bpe  # noqa: E402
from nano_data.draw import Draw  # noqa: E402
from nano_data.records import MODES, Mix  # noqa: E402
from nano_data.render import TOKENIZER_FILE, Renderer  # noqa: E402
from nano_data.stream import FAMILIES, make_draft  # noqa: E402

DEFAULT_SIZE = 2048
WORDS_FILE = HERE / "words.json"
NUM_EXAMPLES = 250  # of each family and mode
MIN_COUNT = 3  # rarer words are made-up names; their parts are learnt from the others
SPECIAL = re.compile("|".join(re.escape(token) for token in (*bpe.FIRST_TOKENS, *bpe.LAST_TOKENS)))
MIX = Mix(question_share=1 / 12, max_questions=12)
DIGITS = frozenset("0123456789")


def count_words(num_examples: int = NUM_EXAMPLES) -> Counter[str]:
    """Return how often each word occurs in training conversations, numbers and rare words left out.

    The conversations are rendered with a tokenizer that has no merges: only their text matters.
    """
    words: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        bare = bpe.make_tokenizer("", 256 + len(bpe.FIRST_TOKENS) + len(bpe.LAST_TOKENS))
        file.write_text(json.dumps(bare, ensure_ascii=False), "utf-8")
        renderer = Renderer(file)
        for family in FAMILIES:
            for mode in MODES:
                for number in range(num_examples):
                    draw = Draw(f"tokenizer/{family}/{mode}/{number}", "train")
                    example = renderer.render(family, mode, *make_draft(draw, family, mode, MIX))
                    for text in SPECIAL.split(renderer.decode(list(example.token_ids))):
                        words.update(word for word in bpe.split_words(text) if not DIGITS & set(word))
    return Counter({word: count for word, count in words.items() if count >= MIN_COUNT})


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=TOKENIZER_FILE)
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE)
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    if arguments.count:
        WORDS_FILE.write_text(json.dumps(count_words(), ensure_ascii=False, indent=0) + "\n", "utf-8")
    content = bpe.make_tokenizer_of(Counter(json.loads(WORDS_FILE.read_text("utf-8"))), arguments.size)
    arguments.out.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    main()
