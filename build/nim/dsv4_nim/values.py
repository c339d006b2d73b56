"""From the text of a setting to its value, or to a sentence with value, limit and fix."""

from __future__ import annotations

from dsv4_nim.errors import SettingError
from dsv4_nim.settings import SWITCH_WORDS, Kind, Setting, Value


def read_value(setting: Setting, name: str, text: str) -> Value:
    """Return the value of `text`, which `name` (a variable, a flag, a key of a file) gave.

    Raises: SettingError with value, limit and fix.
    """
    if setting.kind in (Kind.TEXT, Kind.SECRET):
        return text
    if setting.kind is Kind.SWITCH:
        return _switch(name, text)
    if setting.kind is Kind.CHOICE:
        return _choice(setting, name, text)
    return _number(setting, name, text)


def _switch(name: str, text: str) -> bool:
    word = text.strip().lower()
    if word not in SWITCH_WORDS:
        raise SettingError(f"{name} is {text!r} but must be 0 or 1. Set {name}=1 to switch it on.")
    return SWITCH_WORDS[word]


def _choice(setting: Setting, name: str, text: str) -> str:
    word = next((choice for choice in setting.choices if choice.lower() == text.strip().lower()), "")
    if not word:
        first = setting.choices[0]
        raise SettingError(f"{name} is {text!r} but must be one of {', '.join(setting.choices)}. Set {name}={first}.")
    return word


def _number(setting: Setting, name: str, text: str) -> int | float:
    kind = int if setting.kind is Kind.INTEGER else float
    example = setting.default if setting.default is not None else setting.minimum
    if example is None:
        example = 1
    try:
        value = kind(text)
    except ValueError as error:
        raise SettingError(
            f"{name} is {text!r} but must be {setting.kind.value}. Set for example {name}={example:g}."
        ) from error
    limits = []
    if setting.minimum is not None and not value >= setting.minimum:  # also refuses nan
        limits.append((f"at least {setting.minimum:g}", setting.minimum))
    if setting.maximum is not None and not value <= setting.maximum:
        limits.append((f"at most {setting.maximum:g}", setting.maximum))
    if limits:
        limit, nearest = limits[0]
        raise SettingError(f"{name} is {text} but must be {limit}. Set {name}={nearest:g}, or leave it out.")
    return value
