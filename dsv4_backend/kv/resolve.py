"""Settings that follow from the model: which drafts there are, and how many places fit into the cache's bytes."""

from __future__ import annotations

from dataclasses import replace

from dsv4_backend.config import Drafter, DraftKind, ModelConfig, ServingConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.errors import ConfigError
from dsv4_backend.kv.layout import CacheLayout, make_layout

MTP_DRAFTS = 2  # one block, fed with its own streams for the second


def resolve(config: ServingConfig, model: ModelConfig) -> ServingConfig:
    """Return the settings with nothing left open; resolving them again changes nothing.

    Raises: ConfigError if the checkpoint lacks the drafter's model, or cache_gb holds too little.
    """
    config = _with_drafter(config, model)
    if not config.cache_gb:
        return config
    cache_tokens, max_snapshots = _places(config, layout_of(model, config))
    return replace(config, cache_gb=0.0, cache_tokens=cache_tokens, max_snapshots=max_snapshots)


def layout_of(model: ModelConfig, config: ServingConfig) -> CacheLayout:
    """The caches of a model, with windows for the stages of the draft model that is used."""
    num_stages = model.draft.num_stages if config.drafter.is_model else 0
    return make_layout(model, config.cache_format, config.max_drafts, num_stages)


def _with_drafter(config: ServingConfig, model: ModelConfig) -> ServingConfig:
    kind = model.draft.kind
    if config.drafter is Drafter.AUTO:
        found = Drafter(kind.value)
        most = {Drafter.MTP: MTP_DRAFTS, Drafter.DSPARK: model.draft.block_tokens}.get(found, 0)
        return replace(config, drafter=found, max_drafts=config.max_drafts or most)
    if config.drafter.is_model and config.drafter.value != kind.value:
        fix = f"Set drafter to {kind.value}" if kind is not DraftKind.NONE else "Set drafter to ngram or none"
        name = config.drafter.value
        raise ConfigError(f"drafter is {name} but the draft model of this checkpoint is {kind.value}. {fix}.")
    return config


def _places(config: ServingConfig, layout: CacheLayout) -> tuple[int, int]:
    """Split cache_gb into tokens and snapshots.

    Rule: a state for each sequence that may run, then pages, and a snapshot for each interval of them.
    """
    states = config.max_sequences * layout.state_bytes
    pages_per_unit = config.snapshot_interval_tokens // PAGE_TOKENS
    snapshot = layout.state_bytes if config.prefix_cache else 0
    num_units = (config.cache_gb * 1e9 - states) / (pages_per_unit * layout.page_bytes + snapshot)
    num_pages = int(num_units * pages_per_unit)
    if num_pages < 1:
        least = (states + snapshot + layout.page_bytes) / 1e9
        raise ConfigError(
            f"cache_gb is {config.cache_gb:g} but {config.max_sequences} sequences alone take {states / 1e9:.3f} GB."
            f" Set at least {least:.3f}, or lower max_sequences."
        )
    return num_pages * PAGE_TOKENS, max(1, int(num_units))
