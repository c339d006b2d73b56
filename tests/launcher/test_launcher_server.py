"""One tritonserver from its start to its clean end, on the real server."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
from launcher_rig import EchoStream, left_behind, pids_of, wait_until

from dsv4_backend.errors import ConfigError, LaunchError
from dsv4_backend.launcher import Server, free_ports

pytestmark = pytest.mark.server
MakeServer = Callable[..., Server]


def test_settings_reach_the_models(make_server: MakeServer) -> None:
    with make_server(settings={"prefix": 'a "quoted" \\ word'}) as server:
        assert list(EchoStream(server, "hi", 1, 0.0)) == ['a "quoted" \\ word:hi:0']


def test_draining_lets_a_running_stream_finish_and_leaves_nothing(make_server: MakeServer) -> None:
    with make_server() as server:
        stream = iter(EchoStream(server, "hi", 8, 0.1))
        received = [next(stream)]
        drained: list[int] = []
        drain = threading.Thread(target=lambda: drained.append(server.drain_and_stop()))
        drain.start()
        received += list(stream)
        drain.join()
    assert (len(received), drained, left_behind(server)) == (8, [0], [])


def test_draining_refuses_new_requests(make_server: MakeServer) -> None:
    with make_server(drain_timeout_s=20.0) as server:
        stream = EchoStream(server, "hi", 10, 0.1)
        next(iter(stream))
        drain = threading.Thread(target=server.drain_and_stop)
        drain.start()
        body: dict[str, object] = {"text_input": "late", "count": 1, "gap_s": 0.0}
        assert wait_until(lambda: server.control.generate("echo", body)[0] != 200)
        drain.join()


def test_a_stream_longer_than_the_drain_limit_gets_a_clear_end(make_server: MakeServer) -> None:
    with make_server(drain_timeout_s=0.2) as server:
        stream = iter(EchoStream(server, "hi", 600, 0.1))
        next(stream)
        drained: list[int] = []
        drain = threading.Thread(target=lambda: drained.append(server.drain_and_stop()))
        drain.start()
        last = list(stream)[-1]
        drain.join()
    assert (last[:9], drained, left_behind(server)) == ("set:ended", [0], [])


def test_a_stream_that_never_ends_is_cut_and_leaves_nothing(make_server: MakeServer) -> None:
    with make_server(drain_timeout_s=0.2, exit_timeout_s=2.0, end_grace_s=0.2) as server:
        next(iter(EchoStream(server, "hi", 2, 60.0)))
        server.drain_and_stop()
    assert left_behind(server) == []


def test_a_taken_port_is_refused_before_anything_starts(make_server: MakeServer) -> None:
    with make_server() as running:
        late = make_server(grpc_port=running.grpc_port)
        with pytest.raises(ConfigError, match=f"grpc port {running.grpc_port} on 127.0.0.1 is in use"):
            late.start()
        assert late.run_directory is None


def test_two_servers_share_a_machine(make_server: MakeServer) -> None:
    with make_server(settings={"prefix": "one"}) as one, make_server(settings={"prefix": "two"}) as two:
        texts = [next(iter(EchoStream(server, "hi", 1, 0.0))) for server in (one, two)]
    assert texts == ["one:hi:0", "two:hi:0"]


def test_a_model_that_cannot_load_ends_the_start_with_its_words(make_server: MakeServer) -> None:
    server = make_server(settings={"prefix": "refuse"})
    server.start()
    with pytest.raises(LaunchError, match="the prefix is 'refuse' but must be anything else"):
        server.wait_ready(60.0)
    server.drain_and_stop()
    assert left_behind(server) == []


def test_a_server_that_dies_is_reported_with_its_log(make_server: MakeServer) -> None:
    with make_server() as server:
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: server.poll() is not None)
        with pytest.raises(LaunchError, match=r"(?s)by signal 9.*Started HTTPService"):
            server.is_ready()
    assert left_behind(server) == []


def test_stopping_twice_is_harmless(make_server: MakeServer) -> None:
    with make_server() as server:
        codes = [server.drain_and_stop(), server.drain_and_stop()]
    assert codes == [0, 0]


def test_a_requested_port_is_the_one_that_answers(make_server: MakeServer) -> None:
    port = free_ports(1)[0]
    with make_server(http_port=port) as server:
        assert (server.http_port, server.is_ready()) == (port, True)


def test_the_stub_belongs_to_the_server_by_its_prefix(make_server: MakeServer) -> None:
    with make_server() as server:
        assert len(pids_of(server.shm_prefix)) >= 2
