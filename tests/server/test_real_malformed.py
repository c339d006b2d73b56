"""Malformed requests on the real server: each gets a clear error, and the server goes on serving."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from hypothesis import HealthCheck, given, settings
from malformed import Wrong, wrong_requests
from server_rig import GrpcStream, is_idle, make_inputs, open_stream, wait_until

from dsv4_backend.launcher import Server

pytestmark = pytest.mark.server
CALM = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)

# What the refusal of an input that holds others may speak of instead.
INSIDE = {"request": ("the chat request", "tool_choice", "temperature"), "prepared": ("max_tokens",)}


@pytest.fixture(scope="module")
def line(server: Server) -> Iterator[GrpcStream]:
    """One stream for all examples: an error must not cost the connection either."""
    with open_stream(server.grpc_address) as stream:
        yield stream
        assert not stream.ask("dsv4", {"text_input": "still here", "max_tokens": 3}).error
        wait_until(lambda: is_idle(server), "nothing is left behind")


def refuse(line: GrpcStream, wrong: Wrong) -> None:
    """Send it and judge the answer."""
    tensor = grpcclient.InferInput(wrong.name, list(wrong.array.shape), wrong.datatype)
    tensor.set_data_from_numpy(wrong.array)
    inputs = [*make_inputs(wrong.base), tensor]
    line.client.async_stream_infer(wrong.model, inputs, enable_empty_final_response=True)
    (reply,) = line.read_all().values()
    assert reply.error, f"accepted: {wrong!r}"
    assert not reply.responses
    assert "internal error" not in reply.error and "Traceback" not in reply.error
    assert any(word in reply.error for word in (wrong.name, *INSIDE.get(wrong.name, ()))), (
        f"{wrong!r} is answered with {reply.error!r}"
    )


@given(wrong=wrong_requests())
@settings(CALM, max_examples=100, derandomize=True)
def test_a_hundred_malformed_requests_each_get_a_clear_error(line: GrpcStream, wrong: Wrong) -> None:
    refuse(line, wrong)


@pytest.mark.ci
@given(wrong=wrong_requests())
@settings(CALM, max_examples=1000)
def test_a_thousand_malformed_requests_each_get_a_clear_error(line: GrpcStream, wrong: Wrong) -> None:
    refuse(line, wrong)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "got 0"),
        (b"\x05\0\0\0ab", "2 bytes available"),
        (b"\xff\xff\xff\xff", "0 bytes available"),
        (b"\x01\0\0\0a\x01\0\0\0b", "2"),
        (b"a", "expecting 4 bytes"),
    ],
)
def test_broken_string_bytes_are_refused(line: GrpcStream, data: bytes, words: str) -> None:
    tensor = grpcclient.InferInput("text_input", [1], "BYTES")
    tensor._raw_content = data
    line.client.async_stream_infer("dsv4", [tensor], enable_empty_final_response=True)
    (reply,) = line.read_all().values()
    assert "text_input" in reply.error and words in reply.error


def test_an_input_of_another_name_is_refused(line: GrpcStream) -> None:
    tensor = grpcclient.InferInput("temprature", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    line.client.async_stream_infer("dsv4", [tensor], enable_empty_final_response=True)
    (reply,) = line.read_all().values()
    assert "temprature" in reply.error


def test_a_request_with_nothing_in_it_is_refused(line: GrpcStream) -> None:
    assert "there is no prompt" in line.ask("dsv4", {"max_tokens": 3}).error
    assert "input_ids is missing" in line.ask("dsv4_runtime", {"max_tokens": 3}).error


def test_two_prompts_in_one_request_are_refused(line: GrpcStream) -> None:
    assert "text_input and request" in line.ask("dsv4", {"text_input": "a", "request": "{}"}).error
