"""The NIM environment table: every setting once, with its names, its kind, its limits and its default.

A key that is a field of ServingConfig is a setting of the engine; the others are settings of the container.
Source: NVIDIA NIM for LLMs 2.x (outside) and Triton-based NIMs (ports inside); shared facts `containers_and_nim.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import get_type_hints

from dsv4_backend.config import ServingConfig

Value = str | int | float | bool | None
MAX_PORT = 65_535
SWITCH_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class Kind(str, Enum):
    """How a setting's text is read."""

    INTEGER = "a whole number"
    NUMBER = "a number"
    SWITCH = "0 or 1"
    TEXT = "a text"
    CHOICE = "one of the listed words"
    SECRET = "a key"  # shown as set or unset, never printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    Rule: `names` are environment variables, the first is the one to use; `flags` are what the command line and
          NIM_PASSTHROUGH_ARGS call it. None as a default means: not set.
    """

    key: str
    names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    kind: Kind = Kind.TEXT
    default: Value = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    meaning: str = ""


def _port(key: str, names: tuple[str, ...], flag: str, default: int | None, meaning: str) -> Setting:
    return Setting(
        key=key, names=names, flags=(flag,), kind=Kind.INTEGER, default=default, minimum=1, maximum=MAX_PORT,
        meaning=meaning,
    )  # fmt: skip


def _text(key: str, name: str, flag: str, meaning: str, default: str | None = None) -> Setting:
    return Setting(key=key, names=(name,), flags=(flag,) if flag else (), default=default, meaning=meaning)


def _count(key: str, name: str, flags: tuple[str, ...], meaning: str, default: int | None = None) -> Setting:
    return Setting(
        key=key, names=(name,), flags=flags, kind=Kind.INTEGER, minimum=1, default=default, meaning=meaning
    )  # fmt: skip


def _switch(key: str, name: str, flags: tuple[str, ...], meaning: str, default: bool | None = None) -> Setting:
    return Setting(key=key, names=(name,), flags=flags, kind=Kind.SWITCH, default=default, meaning=meaning)


def _choice(key: str, name: str, flag: str, words: tuple[str, ...], meaning: str) -> Setting:
    """The first word is the default."""
    return Setting(
        key=key, names=(name,), flags=(flag,), kind=Kind.CHOICE, choices=words, default=words[0], meaning=meaning
    )  # fmt: skip


def _secret(key: str, name: str, meaning: str) -> Setting:
    return Setting(key=key, names=(name,), kind=Kind.SECRET, meaning=meaning)


NIM_SETTINGS: tuple[Setting, ...] = (
    _port("server_port", ("NIM_SERVER_PORT", "NIM_HTTP_API_PORT"), "--port", 8000, "API port"),
    _port("health_port", ("NIM_HEALTH_PORT",), "--health-port", None, "a listener of its own for the health routes"),
    _port("triton_http_port", ("NIM_HTTP_TRITON_PORT",), "--triton-http-port", 8080, "Triton's HTTP port"),
    _port(
        "triton_grpc_port", ("NIM_TRITON_GRPC_PORT", "NIM_GRPC_API_PORT"), "--triton-grpc-port", 8001,
        "Triton's gRPC port",
    ),
    _port("triton_metrics_port", ("NIM_TRITON_METRICS_PORT",), "--triton-metrics-port", 8002, "Triton's metrics port"),
    _text("host", "NIM_SERVER_HOST", "--host", "address to listen on", "0.0.0.0"),
    _text("cache_path", "NIM_CACHE_PATH", "--cache-path", "where models are kept", "/opt/nim/.cache"),
    _text("model_profile", "NIM_MODEL_PROFILE", "--profile", "profile id or name; unset = chosen by the machine"),
    _text("tags_selector", "NIM_TAGS_SELECTOR", "--tags", "narrows the choice, such as precision=nvfp4,tp=8"),
    _text("model_path", "NIM_MODEL_PATH", "--model-path", "hf://, s3://, gs:// or a folder; unset = the profile's"),
    _text("served_model_name", "NIM_SERVED_MODEL_NAME", "--served-model-name", "the name that clients use"),
    _count("context_tokens", "NIM_MAX_MODEL_LEN", ("--max-model-len",), "prompt and answer together, in tokens"),
    _count("tensor_parallel_size", "NIM_TENSOR_PARALLEL_SIZE", ("--tensor-parallel-size",), "ranks that share weights"),
    _count("pipeline_parallel_size", "NIM_PIPELINE_PARALLEL_SIZE", ("--pipeline-parallel-size",), "stages"),
    Setting(
        key="kvcache_percent", names=("NIM_KVCACHE_PERCENT",), flags=("--gpu-memory-utilization",), kind=Kind.NUMBER,
        minimum=0.01, maximum=1.0, meaning="share of memory for weights and cache, 0.01 to 1",
    ),
    _switch("prefix_cache", "NIM_ENABLE_KV_CACHE_REUSE", ("--enable-prefix-caching",), "prefix cache"),
    _text("passthrough", "NIM_PASSTHROUGH_ARGS", "", "flags of the engine, as on the command line"),
    _choice(
        "log_level", "NIM_LOG_LEVEL", "--log-level",
        ("WARNING", "TRACE", "DEBUG", "DEFAULT", "INFO", "ERROR", "CRITICAL"), "what is logged to stderr",
    ),
    _switch("jsonl_logging", "NIM_JSONL_LOGGING", ("--jsonl-logging",), "one JSON object a line", False),
    _switch("disable_download", "NIM_DISABLE_MODEL_DOWNLOAD", ("--disable-model-download",), "no downloads", False),
    _choice("ssl_mode", "NIM_SSL_MODE", "--ssl-mode", ("DISABLED", "TLS", "MTLS"), "TLS of the API port"),
    _text("ssl_certs_path", "NIM_SSL_CERTS_PATH", "--ssl-certfile", "certificate chain, PEM"),
    _text("ssl_key_path", "NIM_SSL_KEY_PATH", "--ssl-keyfile", "private key, PEM"),
    _text("ssl_ca_certs_path", "NIM_SSL_CA_CERTS_PATH", "--ssl-ca-certs", "what clients are checked against (MTLS)"),
    _text("cors_allow_origins", "NIM_CORS_ALLOW_ORIGINS", "--cors-allow-origins", "CORS, for the gateway"),
    _text("cors_allow_methods", "NIM_CORS_ALLOW_METHODS", "--cors-allow-methods", "CORS, for the gateway"),
    _text("cors_allow_headers", "NIM_CORS_ALLOW_HEADERS", "--cors-allow-headers", "CORS, for the gateway"),
    _text("cors_expose_headers", "NIM_CORS_EXPOSE_HEADERS", "--cors-expose-headers", "CORS, for the gateway"),
    Setting(
        key="cors_max_age", names=("NIM_CORS_MAX_AGE",), flags=("--cors-max-age",), kind=Kind.INTEGER, minimum=0,
        meaning="CORS, for the gateway, in seconds",
    ),
    _count("num_compute_nodes", "NIM_NUM_COMPUTE_NODES", ("--num-compute-nodes",), "nodes that share one model", 1),
    Setting(
        key="node_rank", names=("NIM_NODE_RANK",), flags=("--node-rank",), kind=Kind.INTEGER, default=0, minimum=0,
        meaning="which of them this is",
    ),
    _switch("leader_role", "NIM_LEADER_ROLE", ("--leader-role",), "1 on the node that answers clients", True),
    _secret("ngc_api_key", "NGC_API_KEY", "downloads from NGC only"),
    _secret("hf_token", "HF_TOKEN", "downloads from Hugging Face only"),
)  # fmt: skip
# Set by the operator or the platform for their own use; nothing to warn about.
IGNORED_NAMES = ("NIM_NAMESPACE", "NIM_MANIFEST_PATH", "NIM_MPI_ALLOW_RUN_AS_ROOT")


ENGINE_KEYS = frozenset(field.name for field in fields(ServingConfig))


def _engine_settings() -> tuple[Setting, ...]:
    """A flag for every setting of the engine that the NIM table does not name already."""
    kinds = {int: Kind.INTEGER, float: Kind.NUMBER, bool: Kind.SWITCH, str: Kind.TEXT}
    named = {setting.key for setting in NIM_SETTINGS}
    hints = get_type_hints(ServingConfig)
    return tuple(
        Setting(
            key=field.name,
            flags=("--" + field.name.replace("_", "-"),),
            kind=kinds.get(hints[field.name], Kind.CHOICE),
            choices=() if hints[field.name] in kinds else tuple(item.value for item in hints[field.name]),
            meaning="engine",
        )
        for field in fields(ServingConfig)
        if field.name not in named and field.name not in ("checkpoint", "num_ranks")
    )


def _with_engine_default(setting: Setting) -> Setting:
    """What the engine does when nobody says anything."""
    if setting.key not in ENGINE_KEYS:
        return setting
    default = getattr(ServingConfig(), setting.key)
    return replace(setting, default=default.value if isinstance(default, Enum) else default)


SETTINGS: tuple[Setting, ...] = tuple(map(_with_engine_default, (*NIM_SETTINGS, *_engine_settings())))
BY_KEY = {setting.key: setting for setting in SETTINGS}
BY_NAME = {name: setting for setting in SETTINGS for name in setting.names}
BY_FLAG = {flag: setting for setting in SETTINGS for flag in setting.flags}
