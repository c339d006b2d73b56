"""The NIM environment table: names, kinds, limits, priority."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dsv4_nim.errors import SettingError
from dsv4_nim.resolve import Inputs, Resolution, Source, render, resolve
from dsv4_nim.settings import BY_FLAG, BY_KEY, BY_NAME, ENGINE_KEYS, NIM_SETTINGS, SETTINGS, Kind, Setting

DOCUMENTED = (
    "NIM_SERVER_PORT", "NIM_HTTP_API_PORT", "NIM_HEALTH_PORT", "NIM_HTTP_TRITON_PORT", "NIM_TRITON_GRPC_PORT",
    "NIM_TRITON_METRICS_PORT", "NIM_CACHE_PATH", "NIM_MODEL_PROFILE", "NIM_TAGS_SELECTOR", "NIM_MODEL_PATH",
    "NIM_SERVED_MODEL_NAME", "NIM_MAX_MODEL_LEN", "NIM_TENSOR_PARALLEL_SIZE", "NIM_PIPELINE_PARALLEL_SIZE",
    "NIM_KVCACHE_PERCENT", "NIM_ENABLE_KV_CACHE_REUSE", "NIM_PASSTHROUGH_ARGS", "NIM_LOG_LEVEL", "NIM_JSONL_LOGGING",
    "NIM_DISABLE_MODEL_DOWNLOAD", "NIM_SSL_MODE", "NIM_SSL_CERTS_PATH", "NIM_SSL_KEY_PATH", "NIM_SSL_CA_CERTS_PATH",
    "NGC_API_KEY", "HF_TOKEN", "NIM_NUM_COMPUTE_NODES", "NIM_NODE_RANK", "NIM_LEADER_ROLE",
)  # fmt: skip
DEFAULTS = {
    "server_port": 8000, "health_port": None, "triton_http_port": 8080, "triton_grpc_port": 8001,
    "triton_metrics_port": 8002, "cache_path": "/opt/nim/.cache", "log_level": "WARNING", "jsonl_logging": False,
    "disable_download": False, "ssl_mode": "DISABLED",
}  # fmt: skip


def from_environment(**environment: str) -> Resolution:
    return resolve(Inputs(environment=environment))


def acceptable(setting: Setting) -> str:
    """A value of a setting that is not its default."""
    if setting.kind is Kind.CHOICE:
        return setting.choices[-1]
    if setting.kind is Kind.SWITCH:
        return "0" if setting.default else "1"
    return {Kind.INTEGER: "1234", Kind.NUMBER: "0.5"}.get(setting.kind, "some text")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_variable_is_in_the_table(name: str) -> None:
    assert name in BY_NAME


@pytest.mark.parametrize(("key", "default"), DEFAULTS.items())
def test_defaults_are_nims(key: str, default: object) -> None:
    assert BY_KEY[key].default == default


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"NIM_PASSTHROUGH_ARGS"}))
def test_every_variable_is_read(name: str) -> None:
    setting = BY_NAME[name]
    given = from_environment(**{name: acceptable(setting)}).given[setting.key]
    assert (given.source, given.name) == (Source.ENVIRONMENT, name)


def test_no_name_and_no_flag_is_used_twice() -> None:
    names = [name for setting in SETTINGS for name in (*setting.names, *setting.flags)]
    assert len(names) == len(set(names))


def test_every_setting_of_the_engine_has_a_flag() -> None:
    assert ENGINE_KEYS - {setting.key for setting in BY_FLAG.values()} == {"checkpoint", "num_ranks"}


def test_the_command_line_is_stronger_than_everything(tmp_path: Path) -> None:
    layers = _all_layers(tmp_path)
    assert resolve(layers).given["context_tokens"].value == 1


@pytest.mark.parametrize(
    ("removed", "value", "source"),
    [
        (("arguments",), 2, Source.PASSTHROUGH),
        (("arguments", "passthrough"), 3, Source.ENVIRONMENT),
        (("arguments", "passthrough", "environment"), 4, Source.RUNTIME_CONFIG),
        (("arguments", "passthrough", "environment", "runtime"), 5, Source.PROFILE),
        (("arguments", "passthrough", "environment", "runtime", "profile"), 1_048_576, Source.DEFAULT),
    ],
)
def test_the_next_source_wins_where_the_stronger_are_silent(
    tmp_path: Path, removed: tuple[str, ...], value: int, source: Source
) -> None:
    given = resolve(_all_layers(tmp_path, without=removed)).given["context_tokens"]
    assert (given.value, given.source) == (value, source)


def _all_layers(folder: Path, without: tuple[str, ...] = ()) -> Inputs:
    """Inputs whose sources say 1 … 5 for the context, the strongest first."""
    config = folder / "runtime_config.json"
    if "runtime" not in without:
        config.write_text(json.dumps({"context_tokens": 4}), encoding="utf-8")
    environment = {} if "environment" in without else {"NIM_MAX_MODEL_LEN": "3"}
    if "passthrough" not in without:
        environment["NIM_PASSTHROUGH_ARGS"] = "--max-model-len 2"
    return Inputs(
        arguments=() if "arguments" in without else ("--max-model-len=1",),
        environment=environment,
        runtime_config=config,
        profile={} if "profile" in without else {"context_tokens": 5},
    )


def test_an_unknown_variable_is_warned_about_with_the_nearest_name() -> None:
    (warning,) = from_environment(NIM_MAX_MODEL_LENGTH="7").warnings
    assert warning == "NIM_MAX_MODEL_LENGTH is not known here and is ignored (did you mean NIM_MAX_MODEL_LEN?)."


def test_a_variable_of_others_is_nobodys_business() -> None:
    assert from_environment(PATH="/bin", NVIDIA_VISIBLE_DEVICES="all").warnings == ()


def test_an_old_name_works_and_two_that_differ_are_told() -> None:
    assert from_environment(NIM_HTTP_API_PORT="9").given["server_port"].value == 9
    both = from_environment(NIM_HTTP_API_PORT="9", NIM_SERVER_PORT="8")
    assert both.given["server_port"].value == 8
    assert "Unset NIM_HTTP_API_PORT" in both.warnings[0]


def test_an_empty_variable_is_an_unset_one() -> None:
    assert from_environment(NIM_SERVER_PORT="").given["server_port"].source is Source.DEFAULT


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("NIM_SERVER_PORT", "70000", "NIM_SERVER_PORT is 70000 but must be at most 65535. Set NIM_SERVER_PORT=65535"),
        ("NIM_SERVER_PORT", "http", "NIM_SERVER_PORT is 'http' but must be a whole number. Set for example"),
        ("NIM_KVCACHE_PERCENT", "90", "NIM_KVCACHE_PERCENT is 90 but must be at most 1. Set NIM_KVCACHE_PERCENT=1"),
        ("NIM_KVCACHE_PERCENT", "nan", "NIM_KVCACHE_PERCENT is nan but must be at least 0.01"),
        ("NIM_LOG_LEVEL", "LOUD", "NIM_LOG_LEVEL is 'LOUD' but must be one of WARNING, TRACE"),
        ("NIM_JSONL_LOGGING", "maybe", "NIM_JSONL_LOGGING is 'maybe' but must be 0 or 1. Set NIM_JSONL_LOGGING=1"),
        ("NIM_MAX_MODEL_LEN", "0", "NIM_MAX_MODEL_LEN is 0 but must be at least 1. Set NIM_MAX_MODEL_LEN=1"),
        ("NIM_PASSTHROUGH_ARGS", "--a 'b", "quotes do not close"),
        ("NIM_PASSTHROUGH_ARGS", "--max-sequence 3", r"unknown flag '--max-sequence' \(did you mean --max-sequences"),
        ("NIM_PASSTHROUGH_ARGS", "--max-sequences", "--max-sequences lacks its value"),
    ],
)
def test_a_value_that_cannot_be_used_stops_the_start_with_value_limit_and_fix(
    name: str, text: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        from_environment(**{name: text})


def test_every_wrong_variable_is_told_at_once() -> None:
    with pytest.raises(SettingError) as stopped:
        from_environment(NIM_SERVER_PORT="0", NIM_NODE_RANK="-1")
    assert len(str(stopped.value).splitlines()) == 2


@pytest.mark.parametrize(("flag", "value"), [("--enable-prefix-caching", True), ("--no-enable-prefix-caching", False)])
def test_a_switch_has_two_flags(flag: str, value: bool) -> None:
    assert resolve(Inputs(arguments=(flag,))).given["prefix_cache"].value is value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be an object"),
        ("{", "cannot be read as JSON"),
        ('{"contxt_tokens": 1}', "did you mean context_tok"),
    ],
)
def test_a_runtime_config_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "runtime_config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingError, match=message):
        resolve(Inputs(runtime_config=path))


def test_the_table_shows_every_setting_with_its_source_and_no_key() -> None:
    text = render(from_environment(NIM_SERVER_PORT="81", HF_TOKEN="hf_secret"))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert set(lines) == set(BY_KEY)
    assert lines["server_port"].split()[1:] == ["81", "environment", "(NIM_SERVER_PORT)"]
    assert lines["hf_token"].split()[1] == "set"
    assert "hf_secret" not in text


@pytest.mark.parametrize("setting", NIM_SETTINGS, ids=lambda setting: setting.key)
def test_every_row_says_what_it_means(setting: Setting) -> None:
    assert setting.meaning
