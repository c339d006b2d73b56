"""Which value wins: command line > NIM_PASSTHROUGH_ARGS > NIM_* > runtime_config.json > profile > defaults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from dsv4_backend.config.fields import nearest_name
from dsv4_nim.errors import SettingError
from dsv4_nim.settings import BY_FLAG, BY_KEY, BY_NAME, IGNORED_NAMES, SETTINGS, Kind, Setting, Value
from dsv4_nim.values import read_value

RUNTIME_CONFIG = "runtime_config.json"
PREFIX = "NIM_"


class Source(str, Enum):
    """Where a value came from, the strongest first."""

    COMMAND_LINE = "command line"
    PASSTHROUGH = "NIM_PASSTHROUGH_ARGS"
    ENVIRONMENT = "environment"
    RUNTIME_CONFIG = "runtime_config.json"
    PROFILE = "profile"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value, its source, and the name under which that source gave it."""

    value: Value
    source: Source
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Every setting by key, and what the operator should be told."""

    given: Mapping[str, Given]
    warnings: tuple[str, ...] = ()

    def text(self, key: str) -> str:
        """Return a setting as text; empty when it is not set."""
        value = self.given[key].value
        return "" if value is None else str(value)

    def integer(self, key: str) -> int | None:
        """Return a whole number, or None when it is not set."""
        value = self.given[key].value
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def port(self, key: str) -> int:
        """Return a number that has a default, such as a port; 0 when it is not set."""
        return self.integer(key) or 0

    def number(self, key: str) -> float | None:
        """Return a number, or None when it is not set."""
        value = self.given[key].value
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def switch(self, key: str) -> bool:
        """Tell whether a switch is on; one that is not set is off."""
        return self.given[key].value is True

    def is_set(self, key: str) -> bool:
        """Tell whether any source but the defaults gave a value."""
        return self.given[key].source is not Source.DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What values are resolved from; `profile` gives values by key, `runtime_config` is a file that may be absent."""

    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime_config: Path | None = None
    profile: Mapping[str, Value] = field(default_factory=dict)


def resolve(inputs: Inputs) -> Resolution:
    """Resolve every setting.

    Raises: SettingError listing every wrong value of the strongest source that has one.
    """
    from_environment, warnings = read_environment(inputs.environment)
    passthrough = str(from_environment["passthrough"].value) if "passthrough" in from_environment else ""
    layers = (
        parse_flags(inputs.arguments, Source.COMMAND_LINE),
        parse_flags(_split(passthrough), Source.PASSTHROUGH),
        from_environment,
        read_runtime_config(inputs.runtime_config),
        {key: Given(value=value, source=Source.PROFILE) for key, value in inputs.profile.items()},
    )
    given = {}
    for setting in SETTINGS:
        default = Given(value=setting.default, source=Source.DEFAULT)
        given[setting.key] = next((layer[setting.key] for layer in layers if setting.key in layer), default)
    return Resolution(given=given, warnings=tuple(warnings))


def read_environment(environment: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    """Return values by key and warnings. Rule: an empty variable is an unset one, as Kubernetes often gives them.

    Raises: SettingError listing every variable whose value cannot be used.
    """
    values: dict[str, Given] = {}
    warnings, problems = [], []
    for setting in SETTINGS:
        present = [name for name in setting.names if environment.get(name)]
        if len({environment[name] for name in present}) > 1:
            told = " and ".join(f"{name}={environment[name]}" for name in present)
            warnings.append(f"{told} differ: {present[0]} is used. Unset {present[1]}.")
        if present:
            try:
                value = read_value(setting, present[0], environment[present[0]])
                values[setting.key] = Given(value=value, source=Source.ENVIRONMENT, name=present[0])
            except SettingError as error:
                problems.append(str(error))
    if problems:
        raise SettingError("\n".join(problems))
    return values, [*warnings, *_unknown_names(environment)]


def _unknown_names(environment: Mapping[str, str]) -> list[str]:
    known = {*BY_NAME, *IGNORED_NAMES}
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [f"{name} is not known here and is ignored{nearest_name(name, BY_NAME)}." for name in unknown]


def parse_flags(arguments: Sequence[str], source: Source) -> dict[str, Given]:
    """Read `--name value`, `--name=value`, `--switch`, `--no-switch`; the last one of a name wins.

    Raises: SettingError for a flag that is unknown (the nearest is named), lacks its value or has a wrong one.
    """
    values: dict[str, Given] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, text = word.partition("=")
        if flag in BY_FLAG:
            setting = BY_FLAG[flag]
            if setting.kind is Kind.SWITCH and not equals:
                text = "1"
            elif not equals:
                text = _next_value(setting, flag, rest)
        elif flag.startswith("--no-") and _is_switch(f"--{flag[5:]}"):
            setting, text = BY_FLAG[f"--{flag[5:]}"], "0"
        else:
            raise SettingError(f"{source.value}: unknown flag {word!r}{nearest_name(flag, BY_FLAG)}.")
        values[setting.key] = Given(value=read_value(setting, flag, text), source=source, name=flag)
    return values


def _is_switch(flag: str) -> bool:
    return flag in BY_FLAG and BY_FLAG[flag].kind is Kind.SWITCH


def _next_value(setting: Setting, flag: str, rest: list[str]) -> str:
    if not rest or rest[0].startswith("--"):
        raise SettingError(f"{flag} lacks its value, {setting.kind.value}. Type {flag}=VALUE.")
    return rest.pop(0)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SettingError(f"NIM_PASSTHROUGH_ARGS is {text!r} but its quotes do not close: {error}.") from error


def read_runtime_config(path: Path | None) -> dict[str, Given]:
    """Read an object of settings by key; an absent file gives none.

    Raises: SettingError when it is no JSON object, or holds a key or a value that cannot be used.
    """
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read as JSON: {error}. Mend it, or remove it.") from error
    if not isinstance(content, dict):
        raise SettingError(f"{path} holds a {type(content).__name__} but must be an object of settings.")
    values = {}
    for key, value in content.items():
        if key not in BY_KEY:
            raise SettingError(f"{path}: unknown setting {key}{nearest_name(key, BY_KEY)}.")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        values[key] = Given(
            value=read_value(BY_KEY[key], key, text), source=Source.RUNTIME_CONFIG, name=f"{path.name}: {key}"
        )
    return values


def render(resolution: Resolution) -> str:
    """Return one line per setting: key, value, source; keys of downloads are shown as set or unset only."""
    rows = [_row(BY_KEY[key], given) for key, given in resolution.given.items()]
    width = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{key:<{width[0]}}  {value:<{width[1]}}  {source}" for key, value, source in rows)


def _row(setting: Setting, given: Given) -> tuple[str, str, str]:
    value = "-" if given.value is None else str(given.value)
    if setting.kind is Kind.SECRET:
        value = "set" if given.value else "unset"
    is_named = given.name and given.name != given.source.value
    return setting.key, value, f"{given.source.value} ({given.name})" if is_named else given.source.value
