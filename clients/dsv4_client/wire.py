"""Requests and responses as the gRPC messages of Triton's inference protocol.

Inputs travel as typed contents, outputs arrive as raw bytes (strings carry a 4-byte length, numbers are little-endian).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tritonclient.grpc import service_pb2

from dsv4_backend.errors import RequestError
from dsv4_backend.records import FinishReason, TokenLogprob, Usage
from dsv4_client.events import Delta, Event, Final, TextSpan
from dsv4_client.options import BOOL, INT32, STRING, Options, TensorKind, encode_option

# Raw text, the body of a chat / responses / messages request, or token ids (those go to the runtime directly).
PromptLike: TypeAlias = str | Mapping[str, object] | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One response of the model repository; `finish_reason` is None until the last one."""

    delta: Delta
    usage: Usage
    finish_reason: FinishReason | None
    error: str

    def events(self) -> list[Event]:
        """Return the delta, unless it is empty, and the end of the stream when this response is the last."""
        delta = self.delta
        has_span = delta.span is not None and delta.span.keep_bytes > delta.span.skip_bytes
        is_empty = not (delta.text or delta.token_ids or delta.prompt_logprobs or has_span)
        found: list[Event] = [] if is_empty else [delta]
        if self.finish_reason is not None:
            found.append(Final(finish_reason=self.finish_reason, usage=self.usage, error=self.error))
        return found


def is_token_ids(prompt: PromptLike) -> bool:
    """Whether the prompt is a list of token ids."""
    return not isinstance(prompt, (str, Mapping))


def build_request(
    model: str, request_id: str, prompt: PromptLike, protocol: str, options: Options
) -> service_pb2.ModelInferRequest:
    """Build the message that starts a request.

    Raises: RequestError for an option that is unknown or of the wrong type or size.
    """
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    if isinstance(prompt, str):
        _add(message, "text_input", STRING, [prompt.encode("utf-8")])
    elif isinstance(prompt, Mapping):
        _add(message, "request", STRING, [json.dumps(prompt, ensure_ascii=False).encode("utf-8")])
        _add(message, "protocol", STRING, [protocol.encode("utf-8")])
    else:
        _add(message, "input_ids", INT32, list(prompt))
    for name, value in {"stream": True, **options}.items():
        if value is not None:
            _add(message, name, *encode_option(name, value))
    return message


def build_stop(model: str, request_id: str) -> service_pb2.ModelInferRequest:
    """Build the message that ends the running request of the same id."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    _add(message, "stop", BOOL, [True])
    return message


def _add(message: service_pb2.ModelInferRequest, name: str, kind: TensorKind, values: Sequence[object]) -> None:
    tensor = message.inputs.add()
    tensor.name = name
    tensor.datatype = kind.datatype
    tensor.shape.append(len(values))
    try:
        getattr(tensor.contents, kind.field).extend(values)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} is {_short(values)} but must fit {kind.datatype}: {error}.") from error


def _short(values: Sequence[object]) -> str:
    text = repr(values[0] if len(values) == 1 else list(values))
    return text if len(text) <= 60 else text[:57] + "..."


def read_reply(response: service_pb2.ModelInferResponse) -> Reply:
    """Read one response; outputs that are missing count as empty."""
    raw = {output.name: data for output, data in zip(response.outputs, response.raw_output_contents, strict=False)}
    reason = _text(raw, "finish_reason")
    logprobs = json.loads(_text(raw, "output_logprobs") or "{}")
    usage = Usage(
        num_input_tokens=_int(raw, "num_input_tokens"),
        num_output_tokens=_int(raw, "num_output_tokens"),
        num_cached_tokens=_int(raw, "num_cached_tokens"),
    )
    delta = Delta(
        text=_text(raw, "text_output"),
        token_ids=_ints(raw, "token_ids"),
        index=_int(raw, "index"),
        logprobs=_logprobs(logprobs.get("tokens")),
        prompt_logprobs=_logprobs(logprobs.get("prompt")),
        usage=usage,
        span=_span(raw),
    )
    return Reply(
        delta=delta,
        usage=usage,
        finish_reason=FinishReason(reason) if reason else None,
        error=_text(raw, "error"),
    )


def _span(raw: Mapping[str, bytes]) -> TextSpan | None:
    if "text_ids" not in raw:
        return None
    counts = (_int(raw, "skip_bytes"), _int(raw, "keep_bytes"))
    return TextSpan(token_ids=_ints(raw, "text_ids"), skip_bytes=counts[0], keep_bytes=counts[1])


def _text(raw: Mapping[str, bytes], name: str) -> str:
    data = raw.get(name, b"")
    return data[4 : 4 + int.from_bytes(data[:4], "little")].decode("utf-8", errors="replace")


def _ints(raw: Mapping[str, bytes], name: str) -> tuple[int, ...]:
    data = raw.get(name, b"")
    return struct.unpack(f"<{len(data) // 4}i", data)


def _int(raw: Mapping[str, bytes], name: str) -> int:
    values = _ints(raw, name)
    return values[0] if values else 0


def _logprobs(items: object) -> tuple[TokenLogprob, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(
        TokenLogprob(
            token_id=item["token_id"],
            logprob=item["logprob"],
            top=tuple((int(token), float(value)) for token, value in item.get("top", ())),
        )
        for item in items
    )
