"""Limits and choices that an operator sets; every field has a default that works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import get_type_hints

from dsv4_backend.config.fields import nearest_name
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.errors import ConfigError

# A file beside the model repository that ends every running request: how the launcher says that its drain limit passed.
END_MARKER = "end-requests"


MAX_DRAFTS = 32


class ExecutorKind(str, Enum):
    """RANKS runs the model in child processes. ZERO repeats the prompt: it measures the server without a model."""

    RANKS = "ranks"
    ZERO = "zero"


class DeviceKind(str, Enum):
    """What ranks compute on. AUTO: a GPU that the kernels are for, where torch sees one, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Drafter(str, Enum):
    """Where drafts come from.

    NGRAM: what followed the newest tokens the last time that they stood in the text.
    MTP, DSPARK: the draft model of the checkpoint, which must have one of that kind.
    AUTO: the draft model that the checkpoint has, if it has one.
    """

    AUTO = "auto"

    NONE = "none"
    NGRAM = "ngram"
    MTP = "mtp"
    DSPARK = "dspark"

    @property
    def is_model(self) -> bool:
        """Whether the ranks make the drafts."""
        return self in (Drafter.MTP, Drafter.DSPARK)


class Numerics(str, Enum):
    """TRAINED keeps the FP8/FP4 round trips and Hadamard of DeepSeek's reference; PLAIN leaves them out.

    W4A8 is TRAINED, but the inputs of FP4 weights are rounded to int8 instead of FP8.
    """

    TRAINED = "trained"
    PLAIN = "plain"
    W4A8 = "w4a8"


class CacheFormat(str, Enum):
    """How cache rows are stored.

    PACKED_* has e4m3 channels, power-of-two scales and bf16 rotary channels, with FP8 or FP4 index keys.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    PACKED_FP8INDEX = "packed-fp8index"
    PACKED_FP4INDEX = "packed-fp4index"


_AT_LEAST_ONE = (
    "max_sequences", "max_waiting", "max_snapshots", "max_host_snapshots", "max_draft_sequences",
    "context_tokens", "max_output_tokens",
)  # fmt: skip
_SWITCH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """How one runtime serves one checkpoint.

    Units: *_tokens in tokens, *_s in seconds.
    Rule:  cache_tokens is the capacity of the paged caches over all running sequences. With cache_gb (10^9 bytes of all
           caches on the device) it follows from that, and so does max_snapshots.
           max_snapshots places of all texts are kept to go on from: at multiples of snapshot_interval_tokens, at the
           end of a prompt, and where a text ends.
           what finds no room any more moves to host memory, which holds host_cache_tokens and max_host_snapshots.
           disk_cache names a folder where kept beginnings outlive the server, in at most disk_cache_gb (10^9 bytes).
           the drafter proposes up to max_drafts tokens per sequence and step while at most max_draft_sequences run;
           they change no answer, and cost rows of every window.
           overlap: where a step can be planned while the one before it still runs, it is.
           cuda_graphs: on a GPU, decode steps are recorded once per bucket of tokens and context, and replayed.
           prompt plus answer never exceed min(context_tokens, the model's positions).
           request_time_limit_s is the idle limit: it bounds a request whose client is gone but cannot be seen
           (cancellation does not cross a Triton ensemble).
    """

    checkpoint: str = ""
    executor: ExecutorKind = ExecutorKind.RANKS
    device: DeviceKind = DeviceKind.CPU
    overlap: bool = True
    cuda_graphs: bool = True
    numerics: Numerics = Numerics.TRAINED
    max_step_tokens: int = 512
    max_sequences: int = 64
    max_waiting: int = 256
    cache_tokens: int = 65_536
    cache_gb: float = 0.0
    prefix_cache: bool = True
    max_snapshots: int = 64
    snapshot_interval_tokens: int = 2048
    host_cache_tokens: int = 0
    max_host_snapshots: int = 256
    disk_cache: str = ""
    disk_cache_gb: float = 64.0
    cache_format: CacheFormat = CacheFormat.FP32
    drafter: Drafter = Drafter.NONE
    max_drafts: int = 0
    max_draft_sequences: int = 4
    context_tokens: int = 1_048_576
    max_output_tokens: int = 393_216
    default_max_tokens: int = 0
    request_time_limit_s: float = 3600.0
    num_ranks: int = 1
    num_threads: int = 0
    max_restarts: int = 3
    step_timeout_s: float = 600.0
    start_timeout_s: float = 3600.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises: ConfigError with value, limit and fix."""
        for name in ("max_step_tokens", "cache_tokens", "snapshot_interval_tokens"):
            value = getattr(self, name)
            if value < PAGE_TOKENS or value % PAGE_TOKENS:
                fix = max(PAGE_TOKENS, -(-value // PAGE_TOKENS) * PAGE_TOKENS)
                raise ConfigError(f"{name} is {value} but must be a multiple of {PAGE_TOKENS} (one page). Set {fix}.")
        if self.host_cache_tokens % PAGE_TOKENS or self.host_cache_tokens < 0:
            raise ConfigError(
                f"host_cache_tokens is {self.host_cache_tokens} but must be 0 (off) or a multiple of {PAGE_TOKENS}."
                f" Set {max(0, self.host_cache_tokens // PAGE_TOKENS * PAGE_TOKENS)}."
            )
        if not 0 <= self.max_drafts <= MAX_DRAFTS:
            raise ConfigError(f"max_drafts is {self.max_drafts} but must be within 0 and {MAX_DRAFTS}.")
        if self.drafter not in (Drafter.NONE, Drafter.AUTO) and not self.max_drafts:
            raise ConfigError(f"drafter is {self.drafter.value} but max_drafts is 0. Set max_drafts to 4.")
        most = (1 + self.max_drafts) * min(self.max_draft_sequences, self.max_sequences)
        if self.drafter is not Drafter.NONE and most > self.max_step_tokens:
            raise ConfigError(
                f"{most} tokens of a step may be drafts and the tokens before them (max_drafts {self.max_drafts}), but"
                f" max_step_tokens is {self.max_step_tokens}. Set at least {most}, or lower max_draft_sequences."
            )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be at least 1.")
        if self.cache_gb < 0:
            raise ConfigError(f"cache_gb is {self.cache_gb:g} but must be at least 0 (0: by cache_tokens).")
        for name in ("request_time_limit_s", "step_timeout_s", "start_timeout_s", "disk_cache_gb"):
            if getattr(self, name) <= 0:
                unit = "GB" if name.endswith("_gb") else "seconds"
                raise ConfigError(f"{name} is {getattr(self, name)} but must be above 0 {unit}.")
        if self.max_sequences > self.max_step_tokens:
            raise ConfigError(
                f"max_sequences is {self.max_sequences} but max_step_tokens is {self.max_step_tokens}: every running"
                f" sequence needs a token per step. Raise max_step_tokens to at least {self.max_sequences}."
            )
        if self.num_ranks != 1:
            raise ConfigError(f"num_ranks is {self.num_ranks}; this runtime implements a mesh of 1. Set 1.")


def parse_serving_config(values: Mapping[str, str]) -> ServingConfig:
    """Build a ServingConfig from names and text, as Triton's model parameters or `--set name=value` give them.

    Raises: ConfigError for an unknown name (the nearest is named) or a value of the wrong type.
    """
    known = {field.name for field in fields(ServingConfig)}
    hints = get_type_hints(ServingConfig)
    typed: dict[str, object] = {}
    for name, text in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name}{nearest_name(name, known)}. Known: {', '.join(sorted(known))}.")
        kind = hints[name]
        try:
            typed[name] = _SWITCH[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError) as error:
            allowed = f"one of {[item.value for item in kind]}" if issubclass(kind, Enum) else f"a {kind.__name__}"
            allowed = "true or false" if kind is bool else allowed
            raise ConfigError(f"{name} is {text!r} but must be {allowed}.") from error
    return ServingConfig(**typed)  # type: ignore[arg-type]
