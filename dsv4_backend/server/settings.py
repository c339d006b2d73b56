"""Model parameters of a config.pbtxt → ServingConfig."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dsv4_backend.config import ServingConfig, parse_serving_config
from dsv4_backend.errors import ConfigError


def read_settings(args: Mapping[str, str]) -> ServingConfig:
    """Return the settings in the arguments of a Python model's `initialize`.

    Rule:   names in capitals belong to Triton's Python backend. A relative checkpoint starts at the folder that holds
            the model repository, so a checkout runs from anywhere.
    Raises: ConfigError for an unknown or wrong setting, or a checkpoint that is not there.
    """
    parameters = json.loads(args["model_config"]).get("parameters", {})
    values = {name: item["string_value"] for name, item in parameters.items() if not name.isupper()}
    config = parse_serving_config(values)
    model_folder = Path(args["model_repository"]).resolve()
    checkpoint = model_folder.parents[1] / config.checkpoint
    if not config.checkpoint or not checkpoint.is_dir():
        raise ConfigError(
            f"parameter checkpoint is {config.checkpoint!r}: {checkpoint} is no folder. Run `make setup` for"
            " the default one, or name a checkpoint in config.pbtxt."
        )
    return replace(config, checkpoint=str(checkpoint))
