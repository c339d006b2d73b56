"""The same tokens through the ensemble, through the runtime, and as a library; alone, together, and after a crash."""

from __future__ import annotations

import json
import os
import signal

import pytest
from dsv4_client import Delta
from dsv4_client.events import Event, join_events
from story_rig import GREEDY, Story, ask_together, prompts, rank_pids

from dsv4_backend.assemble import build_chat_encoder, build_engine, build_text_encoder, load_vocabulary
from dsv4_backend.config import ServingConfig
from dsv4_backend.engine.collect import iterate
from dsv4_backend.records import FinishReason, Limits, Prompt, Request, SamplingParams
from dsv4_backend.runner.inline import InlineExecutor
from dsv4_backend.runner.rank import Rank
from dsv4_backend.text import join_bytes

pytestmark = pytest.mark.server

CHAT = {"model": "deepseek-v4", "messages": [{"role": "user", "content": "How are you today?"}], "max_tokens": 24}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ensemble_runtime_and_library_give_the_same_tokens(story: Story, temperature: float) -> None:
    config = ServingConfig(checkpoint=str(story.checkpoint), num_threads=1)
    ids = build_text_encoder(config).encode("The same words, by three ways.")
    options = {"max_tokens": 40, "ignore_eos": True, "temperature": temperature, "seed": 11}
    with story.client() as client:
        through_ensemble = client.complete("The same words, by three ways.", **options)  # type: ignore[arg-type]
        directly = client.complete(list(ids), **options)  # type: ignore[arg-type]
    engine = build_engine(config, executor=InlineExecutor(lambda: Rank.load(config)))
    engine.start()
    sampling = SamplingParams(temperature=temperature, seed=11)
    item = Prompt(token_ids=ids, sampling=sampling, limits=Limits(max_tokens=40, ignore_eos=True))
    as_library = tuple(token for chunk in iterate(engine, Request(id="l", prompt=item)) for token in chunk.token_ids)
    engine.close()
    assert through_ensemble.token_ids == directly.token_ids == as_library


def test_the_text_is_the_text_of_the_tokens(story: Story) -> None:
    vocabulary = load_vocabulary(ServingConfig(checkpoint=str(story.checkpoint)))
    with story.client() as client:
        got = client.complete("Some text.", max_tokens=60, **GREEDY)  # type: ignore[arg-type]
    assert got.text == join_bytes(vocabulary, got.token_ids).decode("utf-8", "replace")


def test_a_chat_is_encoded_by_the_official_library(story: Story) -> None:
    config = ServingConfig(checkpoint=str(story.checkpoint))
    expected = build_chat_encoder(config).encode("chat", json.dumps(CHAT)).token_ids
    with story.client() as client:
        by_chat = client.complete(CHAT, **GREEDY)  # type: ignore[arg-type]
        by_ids = client.complete(list(expected), max_tokens=24, **GREEDY)  # type: ignore[arg-type]
    assert by_chat.final.usage.num_input_tokens == len(expected)
    assert by_chat.token_ids == by_ids.token_ids


def test_64_streams_at_once_get_the_tokens_of_each_alone(story: Story) -> None:
    texts = prompts(64)
    with story.client() as client:
        together = ask_together(client, texts, max_tokens=16)
        alone = [client.complete(text, max_tokens=16, **GREEDY) for text in texts[::8]]  # type: ignore[arg-type]
    assert all(item.final.usage.num_output_tokens == 16 for item in together)
    assert [item.token_ids for item in together[::8]] == [item.token_ids for item in alone]


def test_a_rank_killed_in_mid_stream_changes_no_token(story: Story) -> None:
    texts = prompts(8)
    with story.client() as client:
        expected = [item.token_ids for item in ask_together(client, texts, max_tokens=60)]
        num_restarts = story.metric("dsv4_rank_restarts_total")
        streams = [client.generate(text, max_tokens=60, **GREEDY) for text in texts]  # type: ignore[arg-type]
        begun: list[list[Event]] = [[next(stream)] for stream in streams]
        assert all(isinstance(events[0], Delta) for events in begun)
        (pid,) = rank_pids(story.server.pid)
        os.kill(pid, signal.SIGKILL)
        got = [join_events([*events, *stream]) for events, stream in zip(begun, streams, strict=True)]
    assert [item.token_ids for item in got] == expected
    assert {item.final.finish_reason for item in got} == {FinishReason.LENGTH}
    story.await_metric("dsv4_rank_restarts_total", num_restarts + 1)


def test_stop_gives_every_page_back(story: Story) -> None:
    with story.client() as client:
        with client.generate("A long story.", request_id="to-stop", max_tokens=20_000, **GREEDY) as events:  # type: ignore[arg-type]
            next(events)
            client.cancel("to-stop")
            assert join_events(events).final.finish_reason is FinishReason.CANCELLED
        story.await_metric("dsv4_pages_used", 0.0)


def test_a_direct_client_that_goes_away_gives_every_page_back(story: Story) -> None:
    with story.client() as client, client.generate([5, 6, 7], max_tokens=20_000, **GREEDY) as events:  # type: ignore[arg-type]
        next(events)
    story.await_metric("dsv4_running_requests", 0.0)
    story.await_metric("dsv4_pages_used", 0.0)


def test_a_constraint_holds_through_the_ensemble(story: Story) -> None:
    ask = [{"role": "user", "content": "Give me some json."}]
    body = CHAT | {
        "messages": ask,
        "response_format": {"type": "json_object"},
        "thinking": {"type": "disabled"},
        "max_tokens": 400,
    }
    with story.client() as client:
        got = client.complete(body | {"seed": 4})
    if got.final.finish_reason is FinishReason.STOP:
        assert isinstance(json.loads(got.text), dict)
    else:
        assert got.text.lstrip().startswith("{")


def test_echo_gives_the_prompt_and_its_logprobs(story: Story) -> None:
    text = "Echo me, please."
    with story.client() as client:
        got = client.complete(text, max_tokens=4, echo=True, logprobs=2, **GREEDY)  # type: ignore[arg-type]
    assert got.text.startswith(text)
    assert len(got.prompt_logprobs) == got.final.usage.num_input_tokens - 1
    assert [item.token_id for item in got.logprobs] == list(got.token_ids)


def test_the_end_of_thinking_is_forced_through_the_ensemble(story: Story) -> None:
    body = CHAT | {"thinking": {"type": "enabled"}, "max_tokens": 40}
    with story.client() as client:
        got = client.complete(body, max_reasoning_tokens=6, **GREEDY)  # type: ignore[arg-type]
    assert got.text.count("</think>") >= 1
    vocabulary = load_vocabulary(ServingConfig(checkpoint=str(story.checkpoint)))
    assert got.token_ids[6] == vocabulary.think_close_id
