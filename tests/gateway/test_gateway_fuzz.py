"""Whatever is sent, the gateway answers in good order: schemathesis on its own OpenAPI, and bodies of any shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import Gateway, run_gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
         "/tokenize", "/detokenize"]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    "messages model tools tool_choice thinking stop seed n temperature max_tokens response_format stream input prompt"
    " reasoning_effort logit_bias system logprobs top_logprobs stream_options previous_response_id store background"
    " suffix echo tokens metadata text functions function_call guided_json guided_choice nvext reasoning".split()
)
roles = st.sampled_from(["user", "assistant", "tool", "developer", "system", "function"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": values}, optional={"tool_calls": values}), max_size=3
)
bodies = st.dictionaries(names, values, max_size=5)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=bodies, talk=messages)
def test_any_body_gives_an_answer_or_a_refusal(gateway: Gateway, path: str, body: dict[str, Any], talk: Any) -> None:
    whole = {"messages": talk, "input": talk, "prompt": "x", "max_tokens": 4, **body}
    found = gateway.http.post(path, content=json.dumps(whole))
    assert found.status_code in (200, 400, 404)
    assert "Traceback" not in found.text and ".py" not in found.text


header_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["x-request-id", "authorization", "x-api-key", "content-type", "accept", "traceparent"]),
       value=header_text)  # fmt: skip
def test_any_header_is_harmless(gateway: Gateway, name: str, value: str) -> None:
    found = gateway.http.post("/tokenize", content=b'{"prompt": "x"}', headers={name: value.strip()})
    assert found.status_code == 200


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(nano_checkpoint: Path, tmp_path: Path) -> None:
    with run_gateway(nano_checkpoint, model_names=("*",)) as gateway:
        gateway.says("Good day")
        _run_schemathesis(gateway, tmp_path)
        assert len(gateway.server.calls) > 100


def _run_schemathesis(gateway: Gateway, tmp_path: Path) -> None:
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-c", program, "run", f"{gateway.url}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--max-examples", "40", "--seed", "1", "--report", "ndjson", "--report-dir", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stdout[-4000:]
