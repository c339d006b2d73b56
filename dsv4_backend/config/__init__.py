"""Configuration as frozen data: `model` (config.json of a checkpoint) and `serving` (limits that an operator sets)."""

from dsv4_backend.config.model import (
    DraftKind,
    DraftSpec,
    ExpertFormat,
    LayerKind,
    LayerSpec,
    ModelConfig,
    QuantSpec,
    RopeSpec,
    YarnSpec,
)
from dsv4_backend.config.read import load_model_config, parse_model_config
from dsv4_backend.config.serving import (
    END_MARKER,
    CacheFormat,
    DeviceKind,
    Drafter,
    ExecutorKind,
    Numerics,
    ServingConfig,
    parse_serving_config,
)

__all__ = [
    "END_MARKER",
    "CacheFormat",
    "DeviceKind",
    "DraftKind",
    "DraftSpec",
    "Drafter",
    "ExecutorKind",
    "ExpertFormat",
    "LayerKind",
    "LayerSpec",
    "ModelConfig",
    "Numerics",
    "QuantSpec",
    "RopeSpec",
    "ServingConfig",
    "YarnSpec",
    "load_model_config",
    "parse_model_config",
    "parse_serving_config",
]
