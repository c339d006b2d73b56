"""One tool for the NeMo Agent Toolkit; what it prints shows that an agent ran it."""

import sys
from collections.abc import AsyncIterator

from nat.builder.builder import Builder
from nat.builder.function_info import FunctionInfo
from nat.cli.register_workflow import register_function
from nat.data_models.function import FunctionBaseConfig


class HumidityConfig(FunctionBaseConfig, name="dsv4_humidity"):
    """It has no settings."""


@register_function(config_type=HumidityConfig)
async def humidity(config: HumidityConfig, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """Offer the tool."""

    async def check(location: str, days: int) -> str:
        """Check the humidity"""
        sys.stderr.write(f"DSV4 TOOL RAN: location={location!r} days={days!r}\n")
        return '{"status": "open", "humidity": 61}'

    yield FunctionInfo.from_fn(check, description="Check the humidity")
