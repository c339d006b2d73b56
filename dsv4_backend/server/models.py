"""The three Python models as Triton calls them: initialize, execute, finalize."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsv4_backend.assemble import build_chat_encoder, build_engine, build_text_encoder, load_vocabulary
from dsv4_backend.config import END_MARKER, load_model_config
from dsv4_backend.server.attempt import attempt
from dsv4_backend.server.codec import Array
from dsv4_backend.server.detokenizer import make_text
from dsv4_backend.server.metrics import TritonMetrics
from dsv4_backend.server.responder import Responder
from dsv4_backend.server.runtime import Runtime
from dsv4_backend.server.settings import read_settings
from dsv4_backend.server.tokenizer import PromptMaker
from dsv4_backend.server.triton import (
    TritonChannel,
    TritonMetricWriter,
    input_arrays,
    make_error_response,
    make_response,
    read_incoming,
)

# Python lets a computing thread run for 5 ms; the sender and admission must not wait that long for the loop.
SWITCH_S = 0.0005


class TokenizerModel:
    """dsv4_tokenizer."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the vocabulary and the chat encoder."""
        _log_to_stderr()
        config = read_settings(args)
        vocab_size = load_model_config(Path(config.checkpoint)).vocab_size
        self._maker = PromptMaker(build_text_encoder(config), build_chat_encoder(config), vocab_size=vocab_size)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [_answer(self._maker.make, request) for request in requests]


class DetokenizerModel:
    """dsv4_detokenizer."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the vocabulary."""
        _log_to_stderr()
        self._vocabulary = load_vocabulary(read_settings(args))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [_answer(lambda arrays: make_text(self._vocabulary, arrays), request) for request in requests]


class RuntimeModel:
    """dsv4_runtime: three threads, no torch. The model lives in child processes of this one."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the weights and begin to serve; the server is not ready before."""
        _log_to_stderr()
        sys.setswitchinterval(SWITCH_S)
        self._config = read_settings(args)
        self._metrics = TritonMetrics(TritonMetricWriter())
        self._end_marker = Path(args["model_repository"]).resolve().parents[1] / END_MARKER
        engine = build_engine(self._config, self._metrics)
        self._responder = Responder(engine.cancel, self._poll)
        self._runtime = Runtime(engine, self._responder, vocab_size=engine.limits.vocab_size)
        engine.start()
        self._responder.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand every request to the engine and return."""
        for request in requests:
            channel = TritonChannel(request)
            self._runtime.handle(channel, partial(read_incoming, request, channel))

    def _poll(self) -> None:
        """On the sender thread, every few hundredths of a second."""
        self._metrics.flush()
        if self._end_marker.exists():  # the launcher's drain limit has passed
            self._end_marker.unlink(missing_ok=True)
            self._responder.end_all()

    def finalize(self) -> None:
        """Let running requests finish, then stop everything."""
        self._runtime.close(self._config.drain_timeout_s)


def _answer(work: Callable[[Mapping[str, Array]], Mapping[str, Array]], request: Any) -> Any:
    arrays: dict[str, Array] = {}
    error = attempt(lambda: arrays.update(work(input_arrays(request))))
    return make_error_response(error) if error else make_response(arrays)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="dsv4 %(levelname)s %(name)s: %(message)s")
