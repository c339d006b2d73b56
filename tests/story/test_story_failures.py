"""Rows of the failure table that need the real server and the real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from dsv4_client.events import join_events
from story_rig import GREEDY, Story

from dsv4_backend.errors import LaunchError, RequestError
from dsv4_backend.launcher import Server, ServerOptions
from tests.conftest import ROOT

pytestmark = pytest.mark.server


def test_a_client_that_stops_reading_holds_nobody_up_and_loses_nothing(story: Story) -> None:
    with story.client() as client:
        unread = client.generate("Nobody reads this.", max_tokens=1500, **GREEDY)  # type: ignore[arg-type]
        other = client.complete("Somebody reads this.", max_tokens=8, **GREEDY)  # type: ignore[arg-type]
        assert other.final.usage.num_output_tokens == 8
        story.await_metric("dsv4_running_requests", 0.0)
        assert len(join_events(unread).token_ids) == 1500


def test_a_prompt_beyond_the_cache_is_refused_with_value_limit_and_fix(story: Story) -> None:
    with story.client() as client, pytest.raises(RequestError, match=r"70000 tokens.*65536.*raise cache_tokens"):
        client.complete([7] * 70_000, max_tokens=1)


def test_a_damaged_checkpoint_is_refused_with_every_problem_named(random_checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(random_checkpoint, damaged)
    index_file = damaged / "model.safetensors.index.json"
    index = json.loads(index_file.read_text("utf-8"))
    del index["weight_map"]["norm.weight"]
    index["weight_map"]["surplus.weight"] = index["weight_map"]["embed.weight"]
    index_file.write_text(json.dumps(index), encoding="utf-8")
    options = ServerOptions(repository=ROOT / "model_repository", settings={"checkpoint": str(damaged)})
    server = Server(options)
    server.start()
    try:
        with pytest.raises(LaunchError) as refused:
            server.wait_ready(60.0)
    finally:
        server.drain_and_stop()
    assert "norm.weight" in str(refused.value) and "surplus.weight" in str(refused.value)
