"""`prepared` carries a prompt from the tokenizer to the runtime."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Constraint, ConstraintKind, Limits, Prompt, SamplingParams
from dsv4_backend.server.prepared import STOP, dump_prompt, load_prompt

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**63 - 1),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-9, 9)), max_size=3).map(tuple),
)
LIMITS = st.builds(
    Limits,
    max_tokens=st.none() | st.integers(1, 99),
    stop=st.lists(TEXTS.map(str.encode), max_size=3).map(tuple),
    timeout_s=st.none() | st.floats(0.1, 9),
)
CONSTRAINTS = st.builds(Constraint, kind=st.sampled_from(ConstraintKind), value=TEXTS)
PROMPTS = st.builds(
    Prompt,
    token_ids=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    sampling=SAMPLING,
    limits=LIMITS,
    constraint=st.none() | CONSTRAINTS,
    cache_salt=TEXTS,
    echo=st.booleans(),
)


@given(PROMPTS)
def test_a_prompt_survives_the_way_to_the_runtime(prompt: Prompt) -> None:
    assert load_prompt(dump_prompt(prompt), prompt.token_ids) == prompt


def test_stop_is_no_prompt() -> None:
    assert load_prompt(STOP, ()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"prompt": 3}',
        '{"stop": false}',
        '{"prompt": {"sampling": {"temperature": "hot"}}}',
        '{"prompt": {"sampling": {"heat": 1}}}',
        '{"prompt": {"limits": {"stop": "x"}}}',
        '{"prompt": {"limits": {"stop": [1]}}}',
        '{"prompt": {"echo": 1}}',
        '{"prompt": {"priority": true}}',
        '{"prompt": {"constraint": {"kind": "poem"}}}',
        '{"prompt": {"constraint": {}}}',
        '{"prompt": {"sampling": {"logit_bias": [[1]]}}}',
        '{"prompt": {"sampling": {"temperature": 1e400000}}, "x": ' + "9" * 5000 + "}",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="prepared"):
        load_prompt(text, ())
