"""nim-serve, list-model-profiles and nim-healthcheck: what they say, and how they stop. No model is loaded here."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from dsv4_nim import commands, main
from dsv4_nim.catalog import all_profiles
from dsv4_nim.errors import DownloadError, HardwareError, NimError, PortError, SettingError
from dsv4_nim.front import Front, Tls, json_reply
from dsv4_nim.logs import Log
from dsv4_nim.machine import Machine
from dsv4_nim.places import Places, find_places
from dsv4_nim.plan import cache_tokens, make_plan
from dsv4_nim.profiles import GB, Profile
from dsv4_nim.resolve import Source
from dsv4_nim.serve import describe, serve
from dsv4_nim.state import Readiness, routes
from nim_rig import command
from poll_rig import ask
from remote_rig import serving

from dsv4_backend.launcher import free_ports
from dsv4_backend.launcher.control import Control

PROFILES = all_profiles()
MACHINE = Machine(cpu_memory_bytes=16 * GB)


@pytest.fixture(scope="module")
def places() -> Places:
    return find_places()


@pytest.fixture
def ports() -> dict[str, str]:
    names = ("NIM_SERVER_PORT", "NIM_HTTP_TRITON_PORT", "NIM_TRITON_GRPC_PORT", "NIM_TRITON_METRICS_PORT")
    return {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_profile_passes_a_dry_run(profile: Profile, places: Places) -> None:
    plan = make_plan(
        [], {"NIM_MODEL_PROFILE": profile.id, "NIM_MODEL_PATH": "hf://org/model"}, MACHINE, places, is_dry=True
    )
    text = describe(plan, MACHINE)
    assert profile.id in text
    assert plan.resolution.given["context_tokens"].source is Source.PROFILE
    assert plan.resolution.given["context_tokens"].value == profile.context_tokens


def test_a_dry_run_prints_every_setting_and_what_goes_to_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--dry-run", "--max-sequences", "8"], {"NIM_MAX_MODEL_LEN": "4096"}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["context_tokens", "4096", "environment", "(NIM_MAX_MODEL_LEN)"] for line in lines)
    assert any(line.split() == ["max_sequences", "8", "command", "line", "(--max-sequences)"] for line in lines)
    assert {"  max_sequences=8", "  context_tokens=4096"} <= set(lines)


def test_what_is_beside_the_model_counts_between_environment_and_profile(
    tmp_path: Path, nano_checkpoint: Path, places: Places
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in nano_checkpoint.iterdir():
        (model / path.name).symlink_to(path)
    (model / "runtime_config.json").write_text(json.dumps({"context_tokens": 2048, "max_sequences": 2}))
    environment = {"NIM_MODEL_PATH": str(model), "NIM_MAX_MODEL_LEN": "1024"}
    settings = make_plan([], environment, MACHINE, places).engine_settings(MACHINE)
    assert (settings["context_tokens"], settings["max_sequences"]) == ("1024", "2")


def test_a_share_of_memory_becomes_tokens_of_the_cache(places: Places) -> None:
    folder, profile = places.bundled(PROFILES[0].uri), PROFILES[0]
    tokens = [cache_tokens(folder, profile, share, MACHINE) for share in (0.25, 0.5)]
    assert tokens[0] % 128 == 0
    assert tokens[1] > 2 * tokens[0] - 128 > 0
    with pytest.raises(SettingError, match=r"NIM_KVCACHE_PERCENT is 0.01 but weights and sequences alone take"):
        cache_tokens(folder, profile, 0.01, Machine(cpu_memory_bytes=GB))


@pytest.mark.parametrize(
    ("environment", "kind", "message"),
    [
        ({"NIM_MODEL_PROFILE": "no-such"}, SettingError, "no profile has that id or name"),
        ({"NIM_MODEL_PROFILE": "f" * 64}, SettingError, "list-model-profiles prints all ids"),
        ({"NIM_MODEL_PROFILE": PROFILES[1].id}, HardwareError, "this machine has no GPU"),
        ({"NIM_MODEL_PATH": "/nowhere"}, SettingError, "NIM_MODEL_PATH is /nowhere but there is no config.json"),
        ({"NIM_MODEL_PATH": "ftp://a/b"}, DownloadError, "Use hf://, s3://, gs:// or a local folder"),
        ({"NIM_TENSOR_PARALLEL_SIZE": "8"}, SettingError, "NIM_TENSOR_PARALLEL_SIZE is 8 but this version runs a mesh"),
        ({"NIM_PASSTHROUGH_ARGS": "--cache-tokens 100"}, SettingError, "cache_tokens is 100 but must be a multiple"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    environment: dict[str, str], kind: type[NimError], message: str, places: Places
) -> None:
    with pytest.raises(kind, match=message):
        make_plan([], environment, MACHINE, places).engine_settings(MACHINE)


def test_the_api_port_in_use_is_told_too(ports: dict[str, str], places: Places) -> None:
    with (
        socket.create_server(("127.0.0.1", int(ports["NIM_SERVER_PORT"]))),
        pytest.raises(PortError, match="NIM_SERVER_PO"),
    ):
        Front("127.0.0.1", int(ports["NIM_SERVER_PORT"]), {})


def test_an_air_gap_without_the_model_ends_with_code_5_and_the_way(ports: dict[str, str], tmp_path: Path) -> None:
    environment = {**ports, "NIM_CACHE_PATH": str(tmp_path), "NIM_MODEL_PATH": "hf://org/model",
                   "NIM_DISABLE_MODEL_DOWNLOAD": "1", "NIM_SERVER_HOST": "127.0.0.1"}  # fmt: skip
    done = command("nim-serve", environment)
    assert done.returncode == 5
    assert "Stage it with `download-to-cache --model-uri hf://org/model`" in done.stderr


def test_an_unknown_variable_is_warned_about_on_stderr() -> None:
    done = command("nim-serve", {"NIM_MAX_MODEL_LEM": "1"}, "--dry-run")
    assert (done.returncode, done.stderr.strip()) == (
        0, "WARNING: NIM_MAX_MODEL_LEM is not known here and is ignored (did you mean NIM_MAX_MODEL_LEN?).",
    )  # fmt: skip


def test_list_model_profiles_prints_every_profile_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.list_model_profiles([]) == 0
    text = capsys.readouterr().out
    assert all(text.count(profile.id) == 1 for profile in PROFILES)
    assert "- Compatible with system and runnable:\n" in text
    assert "[requires >=" in text


def test_every_command_of_the_image_has_an_entry_point() -> None:
    assert set(main.COMMANDS) == {
        "nim-serve", "list-model-profiles", "download-to-cache", "create-model-store", "nim-healthcheck",
    }  # fmt: skip


@pytest.fixture
def front(places: Places) -> Iterator[tuple[Front, Readiness]]:
    plan = make_plan([], {"NIM_SERVED_MODEL_NAME": "mine"}, MACHINE, places)
    readiness = Readiness(is_served=lambda: True)
    with serving({}) as metrics:
        port = int(metrics.address.rpartition(":")[2])
        made = Front("127.0.0.1", 0, routes(plan, readiness, places, Control(host="127.0.0.1", port=port)))
        made.start()
        yield made, readiness
        made.stop()


def test_live_is_there_before_ready(front: tuple[Front, Readiness]) -> None:
    made, readiness = front
    assert ask(made.port, "/v1/health/live")[0] == 200
    assert ask(made.port, "/v1/health/ready")[0] == 503
    readiness.has_answered = True
    assert ask(made.port, "/v1/health/ready")[0] == 200


def test_ready_ends_when_triton_serves_no_more(front: tuple[Front, Readiness]) -> None:
    made, readiness = front
    readiness.has_answered, readiness.is_served = True, lambda: False
    assert ask(made.port, "/v1/health/ready")[0] == 503


def test_metadata_names_the_profile_and_the_model(front: tuple[Front, Readiness]) -> None:
    status, body = ask(front[0].port, "/v1/metadata")
    content = json.loads(body)
    assert (status, content["selectedModelProfileId"]) == (200, PROFILES[0].id)
    assert content["modelInfo"][0]["shortName"] == "mine"


@pytest.mark.parametrize("path", ["/v1/version", "/v1/license", "/v1/manifest", "/v1/models"])
def test_nims_other_routes_answer(front: tuple[Front, Readiness], path: str) -> None:
    assert ask(front[0].port, path)[0] == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("POST", "/v1/chat/completions"), ("GET", "/")])
def test_everything_else_is_not_found(front: tuple[Front, Readiness], method: str, path: str) -> None:
    assert ask(front[0].port, path, method)[0] == 404


def test_healthcheck_tells_ready_from_not_ready(
    front: tuple[Front, Readiness], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, readiness = front
    monkeypatch.setenv("NIM_HEALTH_PORT", str(made.port))
    codes = [commands.nim_healthcheck([]), commands.nim_healthcheck(["--live"])]
    readiness.has_answered = True
    assert [*codes, commands.nim_healthcheck([])] == [1, 0, 0]


def test_healthcheck_of_nobody_fails_with_the_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("NIM_SERVER_PORT", str(port))
    assert commands.nim_healthcheck([]) == 1
    assert f"nobody answers on port {port}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    names = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", names[0], "-keyout", names[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return names


def root_of(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """The answer to GET /; a refusal may come while it is asked or with the answer."""
    connection.request("GET", "/")
    return connection.getresponse()


def test_tls_answers_those_who_trust_the_certificate(certificate: tuple[str, str]) -> None:
    made = Front(
        "127.0.0.1", 0, {"/": lambda: json_reply("fine")}, tls=Tls(certificate=certificate[0], key=certificate[1])
    )
    made.start()
    context = ssl.create_default_context(cafile=certificate[0])
    connection = http.client.HTTPSConnection("localhost", made.port, timeout=5, context=context)
    assert root_of(connection).status == 200
    connection.close()
    made.stop()


def test_a_client_that_is_silent_before_its_handshake_holds_nobody_up(certificate: tuple[str, str]) -> None:
    tls = Tls(certificate=certificate[0], key=certificate[1])
    made = Front("127.0.0.1", 0, {"/": lambda: json_reply("fine")}, tls=tls)
    made.start()
    with socket.create_connection(("127.0.0.1", made.port)):
        context = ssl.create_default_context(cafile=certificate[0])
        connection = http.client.HTTPSConnection("localhost", made.port, timeout=5, context=context)
        assert root_of(connection).status == 200
        connection.close()
    made.stop()


def test_mtls_answers_nobody_without_a_certificate(certificate: tuple[str, str]) -> None:
    tls = Tls(certificate=certificate[0], key=certificate[1], ca=certificate[0])
    made = Front("127.0.0.1", 0, {"/": lambda: json_reply("fine")}, tls=tls)
    made.start()
    context = ssl.create_default_context(cafile=certificate[0])
    connection = http.client.HTTPSConnection("localhost", made.port, timeout=5, context=context)
    connection.connect()  # TLS 1.3 tells the client afterwards: while it asks, or with the first answer
    with pytest.raises((ssl.SSLError, OSError)):
        root_of(connection)
    made.stop()


def test_a_certificate_that_cannot_be_read_is_told_with_its_variable() -> None:
    with pytest.raises(SettingError, match="NIM_SSL_CERTS_PATH /nowhere"):
        Front("127.0.0.1", 0, {}, tls=Tls(certificate="/nowhere", key="/nowhere"))


def test_the_log_keeps_its_level_and_writes_json() -> None:
    out = StringIO()
    log = Log("WARNING", is_json=True, stream=out)
    threads = [threading.Thread(target=say, args=("one",)) for say in (log.info, log.warning, log.error)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert sorted(row["level"] for row in rows) == ["ERROR", "WARNING"]
    assert {row["message"] for row in rows} == {"one"}
