"""Costs of the bundled models, made once."""

from __future__ import annotations

from functools import cache

from dsv4_backend.config import CacheFormat
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.cost import ModelCost
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.formats import HcaState


@cache
def cost(name: str, cache_format: str = "packed-fp4index", hca_state: str = "raw") -> ModelCost:
    config = bundled_config(name)
    assert config is not None
    return model_cost(name, config, CacheFormat(cache_format), HcaState(hca_state))
