"""From settings to objects: the only place that constructs what serves. No torch is imported here."""

from __future__ import annotations

from pathlib import Path

from dsv4_backend.chat import ChatEncoder
from dsv4_backend.config import ExecutorKind, ModelConfig, ServingConfig, load_model_config
from dsv4_backend.engine import Engine, Executor
from dsv4_backend.engine.admission import make_limits
from dsv4_backend.engine.loop import StepLoop
from dsv4_backend.engine.stream import StreamRules
from dsv4_backend.errors import ConfigError
from dsv4_backend.kv.listing import DiskListing, cache_folder
from dsv4_backend.kv.manager import CacheManager, cache_rules
from dsv4_backend.kv.resolve import resolve
from dsv4_backend.metrics import MetricsSink, NullMetrics
from dsv4_backend.runner.executors import Progressed, RankExecutor
from dsv4_backend.runner.zero import ZeroExecutor
from dsv4_backend.scheduler.reasoning import ThinkTokens
from dsv4_backend.scheduler.scheduler import Scheduler
from dsv4_backend.text import TextEncoder, Vocabulary


def load_vocabulary(config: ServingConfig) -> Vocabulary:
    """Read the checkpoint's vocabulary. Raises: ConfigError."""
    return Vocabulary.load(_checkpoint(config))


def build_text_encoder(config: ServingConfig) -> TextEncoder:
    """Make the encoder of raw prompts. Raises: ConfigError."""
    return TextEncoder(_checkpoint(config))


def build_chat_encoder(config: ServingConfig) -> ChatEncoder:
    """Make the encoder of API bodies. Raises: ConfigError."""
    return ChatEncoder(_checkpoint(config))


def build_engine(
    config: ServingConfig,
    metrics: MetricsSink | None = None,
    *,
    executor: Executor | None = None,
    on_progress: Progressed | None = None,
) -> Engine:
    """Make an engine that is not started yet. A given executor replaces the one that the config names.

    Raises: ConfigError when the checkpoint's config or vocabulary cannot be used.
    """
    model = load_model_config(_checkpoint(config))
    config = resolve(config, model)
    vocabulary = load_vocabulary(config)
    _check_vocabulary(model, vocabulary)
    metrics = metrics or NullMetrics()
    cache = CacheManager(cache_rules(config), DiskListing(cache_folder(config, rank=0)))
    limits = make_limits(model, config, cache.capacity_tokens)
    executor = executor or _make_executor(config, on_progress)
    stream_rules = StreamRules(
        token_bytes=vocabulary.token_bytes,
        eos_token_ids=model.eos_token_ids,
        bos_token_id=model.bos_token_id,
        default_time_limit_s=config.request_time_limit_s,
    )
    loop = StepLoop(
        scheduler=Scheduler(config, cache),
        cache=cache,
        executor=executor,
        rules=stream_rules,
        metrics=metrics,
        max_restarts=config.max_restarts,
    )
    think = ThinkTokens(open_id=vocabulary.think_open_id, close_id=vocabulary.think_close_id)
    return Engine(config=config, limits=limits, think=think, turn_id=vocabulary.user_id, executor=executor, loop=loop)


def _make_executor(config: ServingConfig, on_progress: Progressed | None) -> Executor:
    if config.executor is ExecutorKind.ZERO:
        return ZeroExecutor()
    return RankExecutor(config, on_progress)


def _checkpoint(config: ServingConfig) -> Path:
    if not config.checkpoint:
        raise ConfigError("no checkpoint is named. Set `checkpoint` to a folder with config.json and weights.")
    return Path(config.checkpoint)


def _check_vocabulary(model: ModelConfig, vocabulary: Vocabulary) -> None:
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocabulary.size} ids but vocab_size is {model.vocab_size}: they are not a pair."
            " Take both from the same release."
        )
