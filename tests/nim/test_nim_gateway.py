"""The gateway inside the container: its arguments, how it takes the port over, and that the port is never closed."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from dsv4_client.gateway.app import make_app
from dsv4_client.gateway.handover import take_listener
from dsv4_client.gateway.service import make_service
from dsv4_client.gateway.settings import GatewaySettings
from dsv4_nim.front import Front, json_reply
from dsv4_nim.gateway import API_PATHS, Gateway, gateway_arguments, not_yet
from dsv4_nim.logs import Log
from dsv4_nim.machine import Machine
from dsv4_nim.places import find_places
from dsv4_nim.plan import make_plan
from dsv4_nim.profiles import GB
from dsv4_nim.resolve import Inputs, resolve
from dsv4_nim.state import Readiness, facts, routes
from image_rig import wait_for
from poll_rig import ask, polling

from dsv4_backend.errors import ConfigError, LaunchError
from dsv4_backend.launcher import free_ports
from dsv4_backend.launcher.control import Control

# Takes the port, answers one request, and ends by itself.
ONE_ANSWER = """
import sys
from dsv4_client.gateway.handover import take_listener
listener = take_listener(int(sys.argv[-1]))
listener.setblocking(True)
connection, _ = listener.accept()
connection.recv(4096)
connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\ntwo")
connection.close()
"""


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front("127.0.0.1", 0, {"/": lambda: json_reply("one")}, posts=not_yet())
    made.start()
    yield made
    made.stop()


def test_the_gateway_gets_ports_name_model_and_origins() -> None:
    environment = {"NIM_SERVER_PORT": "9000", "NIM_CORS_ALLOW_ORIGINS": "https://a, https://b"}
    arguments = gateway_arguments(resolve(Inputs(environment=environment)), Path("/model"), "mine", Path("/told"))
    text = " ".join(arguments)
    assert "--port 9000 --url 127.0.0.1:8001" in text
    assert "--checkpoint /model --model-name mine --facts /told" in text
    assert text.endswith("--cors-origin https://a --cors-origin https://b")


def test_a_gateway_that_ends_is_started_again_and_stops_when_told(tmp_path: Path, front: Front) -> None:
    starts = tmp_path / "starts"
    script = (
        f"import time; open({str(starts)!r}, 'a').write('x'); time.sleep(60 * (len(open({str(starts)!r}).read()) > 1))"
    )
    out = StringIO()
    gateway = Gateway([], Log("ERROR", stream=out), front, command=[sys.executable, "-c", script])
    gateway.start()
    wait_for(lambda: starts.exists() and len(starts.read_text()) == 2, 30.0, "the second start")
    gateway.stop()
    assert "ended by itself and is started again" in out.getvalue()
    assert starts.read_text() == "xx"


def test_a_gateway_that_never_started_stops_at_once(front: Front) -> None:
    Gateway([], Log("ERROR"), front).stop()


def test_a_gateway_that_never_wants_the_port_is_told_with_it(front: Front) -> None:
    gateway = Gateway([], Log("ERROR"), front, command=[sys.executable, "-c", "import time; time.sleep(60)"])
    gateway.start()
    with pytest.raises(LaunchError, match=rf"does not answer on port {front.port} after 0.2 s"):
        gateway.open(timeout_s=0.2)
    gateway.stop()


def test_nobody_is_refused_while_a_gateway_is_started_again(front: Front) -> None:
    gateway = Gateway([], Log("CRITICAL"), front, command=[sys.executable, "-c", ONE_ANSWER])
    gateway.start()
    assert ask(front.port, "/") == (200, '"one"')
    gateway.open()
    assert [ask(front.port, "/") for _ in range(3)] == [(200, "two")] * 3
    gateway.stop()


def test_the_port_is_closed_when_the_gateway_is_told_to_stop(front: Front) -> None:
    port = front.port
    gateway = Gateway([], Log("CRITICAL"), front, command=[sys.executable, "-c", ONE_ANSWER])
    gateway.start()
    gateway.open()
    gateway.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/")


def test_the_real_gateway_takes_over_without_a_refusal_and_tells_the_same(
    tmp_path: Path, nano_checkpoint: Path
) -> None:
    (grpc_port,) = free_ports(1)  # nobody listens there: no chat is asked for
    places = find_places()
    plan = make_plan([], {"NIM_TRITON_GRPC_PORT": str(grpc_port)}, Machine(cpu_memory_bytes=16 * GB), places)
    told = facts(plan, places)
    (tmp_path / "facts.json").write_text(json.dumps(told))
    readiness = Readiness(is_served=lambda: True)
    metrics = Control(host="127.0.0.1", port=grpc_port)
    front = Front("127.0.0.1", 0, routes(plan, readiness, places, metrics), posts=not_yet())
    front.start()
    arguments = gateway_arguments(plan.resolution, nano_checkpoint, "mine", tmp_path / "facts.json")
    gateway = Gateway(arguments, Log("CRITICAL"), front)
    gateway.start()
    with polling(front.port, *told) as seen:
        wait_for(lambda: seen.num_answers > 20, 30.0, "the front")
        gateway.open()
        at_handover = seen.num_answers
        wait_for(lambda: ask(front.port, "/version")[0] == 200, 30.0, "a route that only the gateway has")
        wait_for(lambda: seen.num_answers > at_handover + 20, 30.0, "the gateway")
    gateway.stop()
    assert seen.failures == []
    assert {path: len(bodies) for path, bodies in seen.bodies.items()} == dict.fromkeys(told, 1)


def test_every_path_of_the_api_says_come_back_soon_until_the_gateway_has_the_port(
    front: Front, nano_checkpoint: Path
) -> None:
    answers = {path: ask(front.port, path, "POST", "{}") for path in API_PATHS}
    assert {path: status for path, (status, _) in answers.items()} == dict.fromkeys(API_PATHS, 503)
    assert json.loads(answers["/v1/messages"][1])["error"]["type"] == "overloaded_error"

    async def served_paths() -> dict[str, dict[str, object]]:  # the client of the service belongs to a running loop
        service = make_service(GatewaySettings(checkpoint=nano_checkpoint))
        paths: dict[str, dict[str, object]] = make_app(service).openapi()["paths"]
        await service.client.close()
        return paths

    served = asyncio.run(served_paths())
    assert set(API_PATHS) <= {path for path, methods in served.items() if "post" in methods}


def test_the_hint_to_retry_survives_a_body_that_nobody_reads(front: Front) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    connection.request("POST", API_PATHS[0], body="x" * 1_000_000)
    assert connection.getresponse().headers["Retry-After"] == "2"
    connection.close()


def test_a_listener_that_nobody_gives_is_told() -> None:
    with pytest.raises(ConfigError, match="--listener-from is 99999 but no listening socket came"):
        take_listener(99_999)
