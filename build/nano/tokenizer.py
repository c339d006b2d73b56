"""Train the tokenizer of the small trained model on its own conversations, and write tokenizer.json.

    python build/nano/tokenizer.py [OUT.json] [--size 2048]

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
NUM_EXAMPLES = 250  # of each family and mode
MIN_COUNT = 3  # rarer words are made-up names; their parts are learnt from the others
SPECIAL = re.compile("|".join(re.escape(token) for token in (*bpe.FIRST_TOKENS, *bpe.LAST_TOKENS)))
MIX = Mix(question_share=1 / 12, max_questions=12)  # what the conversations were when the tokenizer was trained
DIGITS = frozenset("0123456789")


def count_words(num_examples: int = NUM_EXAMPLES) -> Counter[str]:
    """Return how often each word occurs in training conversations, numbers left out.

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
                    draw = Draw(f"tokenizer/{family}/{mode}/{number}", "train", has_more=False)
                    example = renderer.render(family, mode, *make_draft(draw, family, mode, MIX))
                    for text in SPECIAL.split(renderer.decode(list(example.token_ids))):
                        words.update(word for word in bpe.split_words(text) if not DIGITS & set(word))
    return words


def make_content(size: int, num_examples: int = NUM_EXAMPLES) -> dict[str, object]:
    """Return the content of tokenizer.json."""
    words = Counter({word: count for word, count in count_words(num_examples).items() if count >= MIN_COUNT})
    return bpe.make_tokenizer_of(words, size)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=TOKENIZER_FILE)
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE)
    arguments = parser.parse_args()
    content = make_content(arguments.size)
    arguments.out.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    main()
