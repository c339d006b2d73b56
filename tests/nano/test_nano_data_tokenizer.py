"""The committed tokenizer: V4's tokens and cuts, single digits, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nano_data.render import TOKENIZER_FILE
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = Tokenizer.from_file(str(TOKENIZER_FILE))
SPECIAL = (
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜fim▁hole｜>",
    "<｜latest_reminder｜>",
)


def test_it_has_at_most_4096_entries() -> None:
    assert TOKENIZER.get_vocab_size() <= 4096


def test_begin_and_end_have_the_official_ids() -> None:
    found = [
        TOKENIZER.token_to_id(text) for text in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    ]
    assert found == [0, 1, 2]


@pytest.mark.parametrize("text", SPECIAL)
def test_a_special_token_is_one_id(text: str) -> None:
    assert len(TOKENIZER.encode(text).ids) == 1


def test_every_digit_is_a_token() -> None:
    assert len(TOKENIZER.encode("1234567890").ids) == 10


def test_no_entry_but_single_digits_holds_a_digit() -> None:
    entries = json.loads(TOKENIZER_FILE.read_text("utf-8"))["model"]["vocab"]
    assert sum(any(letter in "0123456789" for letter in entry) for entry in entries) == 10


@pytest.mark.parametrize("text", ["naïve 😀 日本\n\t{}", "  two  blanks ", "x" * 50])
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_training_it_again_gives_the_same_file(tmp_path: Path) -> None:
    out = tmp_path / "tokenizer.json"
    command = [sys.executable, str(ROOT / "build" / "nano" / "tokenizer.py"), str(out)]
    subprocess.run(command, check=True, timeout=600)
    assert out.read_bytes() == TOKENIZER_FILE.read_bytes()
