"""Make the small byte-level BPE tokenizer of the default checkpoint: V4's layout and special tokens, few merges.

    python build/tokenizer/make_tokenizer.py OUT.json [--size 1024]

The ids are laid out as in the real vocabulary: three special tokens, the 256 bytes, the merges, then the other special
tokens. Training is written out here, so the file depends on corpus.txt only and not on a library's tie rules.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
FIRST_TOKENS = (BOS, EOS, PAD)
LAST_TOKENS = (
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
)
DEFAULT_SIZE = 1024

# Digits in groups of up to three; runs of CJK and kana; then words, punctuation, line ends and blanks.
SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte 0–255 in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """Cut text as the tokenizer will, each word in the byte alphabet."""
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return [word for word, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def learn_merges(words: Counter[str], num_merges: int) -> list[tuple[str, str]]:
    """Join the most frequent neighbours again and again; ties take the pair that sorts first.

    Raises: ValueError if the text has fewer pairs than merges wanted.
    """
    pieces = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            raise ValueError(f"the text gives {len(merges)} merges but {num_merges} are wanted. Use a smaller --size.")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in pieces.values():
            join_pair(parts, best)
    return merges


def join_pair(parts: list[str], pair: tuple[str, str]) -> None:
    """Replace each occurrence of the pair by its joined piece, in place, from the left."""
    index = 0
    while index + 1 < len(parts):
        if (parts[index], parts[index + 1]) == pair:
            parts[index : index + 2] = [pair[0] + pair[1]]
        index += 1


def make_tokenizer(text: str, size: int = DEFAULT_SIZE) -> dict[str, object]:
    """Return the content of a tokenizer.json with `size` entries, its merges learnt from text."""
    return make_tokenizer_of(Counter(split_words(text)), size)


def make_tokenizer_of(words: Counter[str], size: int) -> dict[str, object]:
    """Return the content of a tokenizer.json with `size` entries, its merges learnt from counted words."""
    alphabet = byte_alphabet()
    num_merges = size - len(FIRST_TOKENS) - len(alphabet) - len(LAST_TOKENS)
    if num_merges < 0:
        raise ValueError(f"--size is {size} but bytes and special tokens alone are {size - num_merges}.")
    merges = learn_merges(words, num_merges)
    entries = [*FIRST_TOKENS, *alphabet, *(left + right for left, right in merges)]
    vocab = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    if len(vocab) != len(entries):
        raise ValueError("two merges give the same entry; the ids would have a gap.")
    added = [(index, token) for index, token in enumerate(FIRST_TOKENS)]
    added += [(len(vocab) + index, token) for index, token in enumerate(LAST_TOKENS)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(index, token) for index, token in added],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(),
        "post_processor": None,
        "decoder": byte_level_json(),
        "model": model_json(vocab, merges),
    }


def added_token(index: int, content: str) -> dict[str, object]:
    """Describe one special token; only the first three are hidden by `skip_special_tokens`, as in the real file."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": content in FIRST_TOKENS}


def byte_level_json() -> dict[str, object]:
    """Describe the step between bytes and their printable characters."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def pre_tokenizer_json() -> dict[str, object]:
    """Describe how text is cut before merging."""
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in SPLITS
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level_json()]}


def model_json(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, object]:
    """Describe the BPE itself."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE)
    arguments = parser.parse_args()
    text = Path(__file__).with_name("corpus.txt").read_text("utf-8")
    content = make_tokenizer(text, arguments.size)
    arguments.out.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
