"""Going on from a snapshot gives the bits of computing everything, at every offset of a page and in every format."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from dsv4_kernels.dispatch import bind
from hf_oracle import HfSource, make_oracle, random_tokens
from torch import Tensor

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.kv.layout import make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.kv.prefix import KeyedTokens
from dsv4_backend.model import Transformer
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.inputs import InputBuilder

PAGE, EDGE = 128, 256


@cache
def tiny_model() -> Transformer:
    model, config = make_oracle(21, num_hidden_layers=3, compress_ratios=[0, 4, 128], index_topk=12)
    return Transformer.load(config, HfSource(model), bind("cpu"), Numerics.TRAINED)


def start_of(sequence_id: int) -> SequenceStart:
    return SequenceStart(sequence_id=sequence_id, token_ids=(), num_prompt_tokens=0, sampling=SamplingParams())


class Server:
    """A model with a cache so small that what is kept moves to host memory between requests."""

    def __init__(self, cache_format: CacheFormat, pages: int) -> None:
        self.model = tiny_model()
        layout = make_layout(self.model.config, cache_format)
        rules = CacheRules(
            device={"block": pages, "state": 3},
            host={"block": 8, "state": 4},
            keeps_prefixes=True,
            interval_tokens=EDGE,
        )
        self.manager, self.cache = CacheManager(rules), RankCache(layout, rules.device, rules.host)
        self.builder = InputBuilder(self.model.config, layout)
        self.next_id = 0

    def logits(self, tokens: list[int]) -> tuple[int, Tensor]:
        """Tokens that were found, and the logits of the last step."""
        self.next_id += 1
        found = self.manager.admit(self.next_id, KeyedTokens(tokens), len(tokens))
        assert found is not None
        done, result = found, torch.empty(0)
        while done < len(tokens):
            end = min(len(tokens), done + EDGE)
            self.manager.reserve(self.next_id, end)
            row = PlanRow(
                sequence_id=self.next_id,
                start=done,
                token_ids=tuple(tokens[done:end]),
                grants=self.manager.grants(self.next_id),
                wants_prompt_logprobs=True,
            )
            starts = (start_of(self.next_id),) if done == found else ()
            self.cache.copy(self.manager.take_copies())
            result = self.model.forward(self.builder.build(StepPlan(step=0, rows=(row,), starts=starts)), self.cache)
            self.manager.commit(self.next_id, end)
            done = end
        self.manager.release(self.next_id)
        return found, result


@pytest.mark.parametrize(
    ("cache_format", "pages"),
    [
        (CacheFormat.FP32, 12),
        (CacheFormat.BF16, 12),
        (CacheFormat.PACKED_FP4INDEX, 12),
        (CacheFormat.FP32, 4),
        (CacheFormat.PACKED_FP4INDEX, 4),
    ],
)
def test_a_text_goes_on_from_its_snapshot_at_every_offset(cache_format: CacheFormat, pages: int) -> None:
    """With four pages another text drives the first one out each time, so that it comes back from host memory."""
    tokens, other = random_tokens(EDGE + PAGE, 1), random_tokens(2 * PAGE + 1, 3)
    _, expected = Server(cache_format, 12).logits(tokens)  # of the last page, each token's
    server = Server(cache_format, pages)
    server.logits(tokens[: EDGE + 1])
    for offset in range(1, PAGE + 1):
        if pages == 4:
            server.logits(other)
        found, logits = server.logits(tokens[: EDGE + offset])
        assert found == EDGE
        assert torch.equal(logits, expected[:offset]), offset
    server.manager.check()
