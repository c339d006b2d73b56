"""The bytes behind each token id, read once from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.errors import ConfigError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Bytes of every id, and the ids that the runtime must know by name.

    Rule: special_ids are all added tokens: they mark structure, and a grammar over text never produces them.
    """

    tokens: tuple[bytes, ...]
    special_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    user_id: int | None
    think_open_id: int | None
    think_close_id: int | None

    @classmethod
    def load(cls, path: Path | str) -> Vocabulary:
        """Read a tokenizer.json, or the one in the folder `path`.

        Raises: ConfigError if the file is missing or is not a byte-level BPE.
        """
        file = tokenizer_file(path)
        try:
            return parse_vocabulary(json.loads(file.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{file} cannot be read as JSON: {error}. Restore it from the release.") from error
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    @property
    def size(self) -> int:
        """Number of ids, counting gaps."""
        return len(self.tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id; ids outside (padding rows of the head) are empty, as in the library."""
        return self.tokens[token_id] if 0 <= token_id < len(self.tokens) else b""


def tokenizer_file(path: Path | str) -> Path:
    """Return the tokenizer.json that `path` names, itself or as its folder."""
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"{file} does not exist. Name a checkpoint folder that holds a tokenizer.json.")
    return file


def parse_vocabulary(content: object) -> Vocabulary:
    """Turn the JSON object of a tokenizer.json into a Vocabulary.

    Raises: ConfigError if it is not a byte-level BPE.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ConfigError("there is no model.vocab object; a Hugging Face tokenizer.json has one.")
    if model.get("type") != "BPE" or not _names_byte_level(content.get("decoder")):
        kind = model.get("type")
        raise ConfigError(f"the model is {kind!r} but must be 'BPE' with a ByteLevel decoder, as DeepSeek-V4's is.")
    names: dict[str, int] = dict(model["vocab"])
    added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or ()}
    names |= added
    return Vocabulary(
        tokens=_token_table(names),
        special_ids=frozenset(added.values()),
        bos_id=names.get(BOS),
        eos_id=names.get(EOS),
        user_id=added.get(USER),
        think_open_id=added.get(THINK_OPEN),
        think_close_id=added.get(THINK_CLOSE),
    )


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each printable character of a byte-level vocabulary stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _token_table(names: Mapping[str, int]) -> tuple[bytes, ...]:
    alphabet = byte_alphabet()
    table = [b""] * (max(names.values(), default=-1) + 1)
    for name, token_id in names.items():
        try:
            table[token_id] = bytes([alphabet[char] for char in name])
        except KeyError:  # a special token whose spelling leaves the alphabet stands for itself
            table[token_id] = name.encode("utf-8")
    return tuple(table)


def _names_byte_level(decoder: object) -> bool:
    """True for a ByteLevel decoder, alone or in a Sequence."""
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "ByteLevel":
        return True
    return any(_names_byte_level(step) for step in decoder.get("decoders") or ())
