"""Settings that follow from the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4_backend.config import CacheFormat, Drafter, ModelConfig, ServingConfig, load_model_config
from dsv4_backend.errors import ConfigError
from dsv4_backend.kv.layout import BLOCK, STATE
from dsv4_backend.kv.manager import cache_rules
from dsv4_backend.kv.resolve import layout_of, resolve
from dsv4_backend.plan.bundled import bundled_config


def released(name: str) -> ModelConfig:
    found = bundled_config(name)
    assert found is not None
    return found


PACKED = CacheFormat.PACKED_FP4INDEX


@pytest.mark.parametrize("name", ["flash", "pro"])
@pytest.mark.parametrize("cache_gb", [2.0, 40.0])
def test_the_cache_fills_its_bytes_and_no_more(name: str, cache_gb: float) -> None:
    model = released(name)
    config = resolve(ServingConfig(cache_gb=cache_gb, cache_format=PACKED, max_sequences=16), model)
    places, layout = cache_rules(config).device, layout_of(model, config)
    taken = places[BLOCK] * layout.page_bytes + places[STATE] * layout.state_bytes
    unit = layout.page_bytes * 16 + layout.state_bytes
    assert cache_gb * 1e9 - 2 * unit <= taken <= cache_gb * 1e9
    assert resolve(config, model) == config


def test_too_few_bytes_are_refused_with_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"cache_gb is 0.05 but 64 sequences alone take 0.3\d\d GB. Set at least 0.3"):
        resolve(ServingConfig(cache_gb=0.05, cache_format=PACKED), released("flash"))


def test_auto_drafts_with_the_model_that_the_checkpoint_has(nano_checkpoint: Path) -> None:
    nano = load_model_config(nano_checkpoint)
    found = resolve(ServingConfig(drafter=Drafter.AUTO), nano)
    assert (found.drafter, found.max_drafts) == (Drafter.MTP, 2)
    assert resolve(ServingConfig(drafter=Drafter.AUTO, max_drafts=1), nano).max_drafts == 1
    assert resolve(ServingConfig(drafter=Drafter.AUTO), released("flash")).drafter is Drafter.NONE
