"""Mean accepted length of the MTP block, computed offline on what the model itself wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from dsv4_kernels.dispatch import bind
from nano_train.batch import Document, aligned, pack
from nano_train.config import CHUNK, read_config
from nano_train.data import PAD_ID
from nano_train.evaluate import DEPTH, token_hits
from nano_train.export import Trained
from nano_train.model import Pass
from nano_train.numerics import Rounding

from nano_eval.score import Played


def accepted_length(model: Trained, played: Iterable[Played]) -> float:
    """Tokens per step: one, and the drafts before the first that greedy decoding would not have written.

    Rule: a step begins after the prompt, and then after every token that the step before accepted or chose.
    """
    config, rounding = read_config(model.values), Rounding(bind("cpu"))
    num_tokens = num_steps = 0
    for item in played:
        prompt = item.example.token_ids[: item.example.num_prompt_tokens]
        ids = [*prompt, *item.answer]
        document = Document(ids, [False] * len(ids))
        batch = pack([document], -(-aligned(len(ids)) // CHUNK) * CHUNK, PAD_ID)
        with torch.no_grad():
            found = draft_hits(Pass(config, model.weights, batch, rounding), len(prompt), len(ids))
        tokens, steps = walk(found, len(item.answer))
        num_tokens, num_steps = num_tokens + tokens, num_steps + steps
    return num_tokens / max(num_steps, 1)


def draft_hits(run: Pass, first: int, end: int) -> list[list[bool]]:
    """For each depth and each token first ... end - 1 that a step chooses: whether the draft after it is right.

    Rule: the step that chooses token i reads the streams of token i - 1; its draft of depth k is token i + k.
    """
    streams = run.backbone()
    rows = torch.arange(first - 1, end - 1)
    found = []
    for depth in range(1, DEPTH + 1):
        streams = run.draft(streams.roll(1, 0) if depth > 1 else streams)
        is_hit = token_hits(run, streams, rows + depth - 1, "mtp.0.", ahead=1)
        found.append((is_hit & (rows + depth + 1 < end)).tolist())
    return found


def walk(hits: Sequence[Sequence[bool]], num_tokens: int) -> tuple[int, int]:
    """Decode an answer of num_tokens with these drafts; return tokens and steps."""
    place = steps = 0
    while place < num_tokens:
        accepted = 0
        while accepted < len(hits) and hits[accepted][place]:
            accepted += 1
        place += 1 + accepted
        steps += 1
    return num_tokens, steps
