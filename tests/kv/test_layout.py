"""The caches of the released models take the bytes of the facts, measured on tensors."""

from __future__ import annotations

import pytest

from dsv4_backend.config import CacheFormat
from dsv4_backend.kv.layout import make_layout
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.runner.cache import RankCache


@pytest.mark.parametrize(("name", "token_bytes", "state_megabytes"), [("pro", 5031.4, 7.3), ("flash", 3514.3, 5.1)])
def test_released_models_allocate_what_the_facts_say(name: str, token_bytes: float, state_megabytes: float) -> None:
    config = bundled_config(name)
    assert config is not None
    layout = make_layout(config, CacheFormat.PACKED_FP4INDEX)
    pages, both = (RankCache(layout, {"block": 16, "state": count}).num_bytes for count in (0, 2))
    assert pages / (16 * 128) == pytest.approx(token_bytes, rel=1e-4)
    assert (both - pages) / 2 <= state_megabytes * 1e6


def test_drafts_that_may_be_taken_back_cost_rows_of_the_rings_alone() -> None:
    config = bundled_config("flash")
    assert config is not None
    plain, drafting = (make_layout(config, CacheFormat.PACKED_FP4INDEX, count) for count in (0, 5))
    assert drafting.page_bytes == plain.page_bytes
    windows = config.num_layers * 5 * 584
    csa, hca = 21 * 5 * 2 * (1024 + 256) * 4, 20 * 5 * 2 * 512 * 4
    assert drafting.state_bytes - plain.state_bytes == windows + csa + hca
