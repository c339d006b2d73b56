"""Text → ids, for prompts that arrive as plain text (`text_input`). Chat requests are encoded in chat/."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from dsv4_backend.errors import RequestError
from dsv4_backend.text.vocab import BOS, tokenizer_file


class TextEncoder:
    """Encodes raw prompts.

    Rule: the spelling of a special token in a raw prompt is that token, so a client can write a whole chat by hand;
          inside chat messages it stays text. A prompt that does not begin with the begin-of-sentence token gets one,
          because the model has never seen a text without it and V4's tokenizer adds none.
    """

    def __init__(self, path: Path | str) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file(path)))
        self.bos_id: int | None = self._tokenizer.token_to_id(BOS)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a raw prompt, begin-of-sentence first.

        Raises: RequestError if the text is not valid Unicode.
        """
        ids = self.encode_bare(text)
        if self.bos_id is None or ids[:1] == (self.bos_id,):
            return ids
        return (self.bos_id, *ids)

    def encode_bare(self, text: str) -> tuple[int, ...]:
        """Return the ids of the text alone."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"the prompt is not valid Unicode at character {error.start}. Send UTF-8.") from error
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
