"""The real server at its limits: a full queue, a drain, an unload."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_rig import GrpcStream, Start, is_idle, open_stream, read_metrics, wait_until

pytestmark = pytest.mark.server
ENDLESS = {"text_input": "on and on", "max_tokens": 60_000, "ignore_eos": True}


def test_a_full_queue_is_answered_with_a_retry_hint(start_server: Start) -> None:
    with start_server({"max_sequences": "1", "max_waiting": "1"}) as server, open_stream(server.grpc_address) as stream:
        for request_id in ("running", "waiting"):
            stream.send("dsv4", ENDLESS, request_id=request_id)
        stream.read_one()
        with open_stream(server.grpc_address) as other:
            error = other.ask("dsv4", {"text_input": "me too"}).error
            for request_id in ("waiting", "running"):
                other.ask("dsv4", {"stop": True}, request_id=request_id)
        assert "limit is 2" in error and "Retry after" in error
        assert all(reply.finish_reason == "cancelled" for reply in stream.read_all(2).values())


def test_draining_lets_streams_finish_and_leaves_nothing(start_server: Start) -> None:
    with start_server({}) as server:
        streams = [GrpcStream(server.grpc_address) for _ in range(8)]
        for index, stream in enumerate(streams):
            stream.send("dsv4", {**ENDLESS, "max_tokens": 3000}, request_id=f"d{index}")
        for stream in streams:
            stream.read_one()
        prefix = server.shm_prefix
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(server.drain_and_stop)
            replies = []
            for index, stream in enumerate(streams):
                replies.append(stream.read_all()[f"d{index}"])
                stream.close()  # an open gRPC stream keeps its model loaded, busy or not
            assert stopping.result(timeout=60) == 0
    assert [reply.finish_reason for reply in replies] == ["length"] * 8
    assert not list(Path("/dev/shm").glob(f"*{prefix}*"))


def test_an_unload_cuts_streams_at_the_drain_limit_with_a_clear_end(start_server: Start) -> None:
    with start_server({"request_time_limit_s": "1.5"}) as server, open_stream(server.grpc_address) as stream:
        stream.send("dsv4", ENDLESS, request_id="late")
        stream.read_one()
        server.control.unload("dsv4")
        assert stream.read_all()["late"].finish_reason == "time_limit"


def test_an_unknown_setting_stops_the_load_and_names_it(start_server: Start) -> None:
    with pytest.raises(Exception, match="unknown setting max_sequence "), start_server({"max_sequence": "1"}):
        pass


def test_metrics_show_what_was_served(start_server: Start) -> None:
    with start_server({}) as server, open_stream(server.grpc_address) as stream:
        stream.ask("dsv4", {"text_input": "red green", "max_tokens": 11})
        expected = {
            'dsv4_requests_total{outcome="length"}': 1,
            "dsv4_output_tokens_total": 11,
            "dsv4_time_to_first_token_seconds_count": 1,
            'dsv4_time_to_first_token_seconds_bucket{le="+Inf"}': 1,
            "dsv4_inter_token_seconds_count": 10,
            "dsv4_running_requests": 0,
            "dsv4_rank_restarts_total": 0,
        }
        # written one by one, off the loop's thread: a reader may come in between
        wait_until(lambda: expected.items() <= read_metrics(server.metrics_address).items(), f"counted {expected}")


def test_a_client_that_cancels_directly_gives_every_page_back(start_server: Start) -> None:
    with start_server({}) as server:
        stream = GrpcStream(server.grpc_address)
        stream.send("dsv4_runtime", {"input_ids": [70, 71], "max_tokens": 60_000, "ignore_eos": True})
        stream.read_one()
        stream.close(is_cancelled=True)
        cancelled = 'dsv4_requests_total{outcome="cancelled"}'
        wait_until(lambda: cancelled in read_metrics(server.metrics_address), "counted as cancelled")
        wait_until(lambda: is_idle(server), "every page is back")
