"""Join consecutive chunks of one request into one, so that the cost per response is paid once."""

from __future__ import annotations

from dataclasses import replace

from dsv4_backend.records import Chunk


def join_chunks(first: Chunk, second: Chunk) -> Chunk:
    """Return one chunk that says what `first` followed by `second` say.

    Rule: a second chunk that skips bytes repeats the last text token of the chunk with text before it, so that token is
          taken once. Text, ids and logprobs are in order; usage, finish reason and error are the second's.
    """
    is_repeated = bool(second.skip_bytes and first.text_ids)
    text_ids = first.text_ids + (second.text_ids[1:] if is_repeated else second.text_ids)
    num_bytes = (first.keep_bytes - first.skip_bytes) + (second.keep_bytes - second.skip_bytes)
    skip_bytes = first.skip_bytes if first.text_ids else second.skip_bytes
    return replace(
        second,
        index=first.index,
        token_ids=first.token_ids + second.token_ids,
        text_ids=text_ids,
        skip_bytes=skip_bytes,
        keep_bytes=skip_bytes + num_bytes,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
    )
