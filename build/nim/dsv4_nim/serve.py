"""`nim-serve`: resolve, fetch, start Triton, answer health from the first second on, drain on SIGTERM; fit as PID 1."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4_client import Client, Final

from dsv4_backend.config import parse_serving_config
from dsv4_backend.errors import LaunchError
from dsv4_backend.launcher import Server, ServerOptions, Supervisor, news
from dsv4_backend.launcher.control import Control
from dsv4_backend.launcher.ports import is_free
from dsv4_backend.records import FinishReason
from dsv4_nim.download import fetch
from dsv4_nim.errors import DownloadError, PortError
from dsv4_nim.front import Front, Tls
from dsv4_nim.gateway import Gateway, gateway_arguments, not_yet
from dsv4_nim.logs import Log
from dsv4_nim.machine import Machine, detect
from dsv4_nim.places import Places, find_places
from dsv4_nim.plan import ServePlan, make_plan
from dsv4_nim.resolve import render
from dsv4_nim.settings import BY_KEY
from dsv4_nim.state import Readiness, facts, routes

DRY_RUN = "--dry-run"
FIRST_REQUEST = {"messages": [{"role": "user", "content": "Hello"}]}
FIRST_ANSWER_S = 600.0
PROBE_S = 0.8  # Kubernetes gives a probe one second
ENSEMBLE = "dsv4"
PORT_KEYS = {"http": "triton_http_port", "grpc": "triton_grpc_port", "metrics": "triton_metrics_port"}


def serve(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run the command and return its exit code. Raises: NimError, ConfigError, LaunchError."""
    is_dry = DRY_RUN in arguments
    arguments = [word for word in arguments if word != DRY_RUN]
    machine, places = detect(), find_places()
    plan = make_plan(arguments, environment, machine, places, is_dry=is_dry)
    log = Log(plan.resolution.text("log_level"), is_json=plan.resolution.switch("jsonl_logging"))
    for warning in plan.resolution.warnings:
        log.warning(warning)
    if is_dry:
        sys.stdout.write(describe(plan, machine) + "\n")
        return 0
    return Service(plan=plan, places=places, machine=machine, log=log).run()


def describe(plan: ServePlan, machine: Machine) -> str:
    """Say what would be served, with every setting and where it came from."""
    profile, verdict = plan.profile, plan.verdict
    lines = [
        f"machine   {machine.describe()}",
        f"profile   {profile.id}",
        f"          {profile.name} [requires >={profile.needed_gb} GB{'' if profile.is_cpu else '/gpu'}]",
        f"fit       {verdict.fit.value}{': ' + verdict.reason if verdict.reason else ''}",
        f"model     {plan.model or plan.folder}{f' into {plan.folder}' if plan.model else ''}",
        "",
        render(plan.resolution),
    ]
    if not plan.model:
        settings = plan.engine_settings(machine)
        lines += ["", "to the engine", *[f"  {key}={value}" for key, value in settings.items()]]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One run of the container."""

    plan: ServePlan
    places: Places
    machine: Machine
    log: Log

    def run(self) -> int:
        """Serve until a signal. Returns 0 after a clean end."""
        resolution = self.plan.resolution
        host = resolution.text("host")
        ports = {name: resolution.port(key) for name, key in PORT_KEYS.items()}
        self._require_ports(host, ports)
        readiness = Readiness(is_served=lambda: _serves(ports["http"]))
        metrics = Control(host="127.0.0.1", port=ports["metrics"], timeout_s=2.0)
        told = routes(self.plan, readiness, self.places, metrics)
        with contextlib.ExitStack() as stack:
            api = Front(host, resolution.port("server_port"), told, posts=not_yet(), tls=self._tls())
            front = stack.enter_context(_answering(api))
            health = resolution.integer("health_port")
            if health is not None:
                stack.enter_context(_answering(Front(host, health, told)))
            folder = self._model(readiness)
            server = self._server(host, ports)
            gateway = stack.enter_context(self._gateway(folder, front))
            self.log.info(f"starting {self.plan.served_name} from {folder} with profile {self.plan.profile.name}")
            readiness.phase = "loading the model"

            def on_ready() -> None:
                self._first_answer(server, readiness)
                gateway.open()  # the API port is the gateway's from now on
                readiness.has_answered = True
                readiness.phase = "draining"
                self.log.info(f"ready: gRPC {server.grpc_address}, HTTP {server.http_address}")

            return Supervisor(server, say=self.log.info).run(on_ready)

    def _require_ports(self, host: str, ports: Mapping[str, int]) -> None:
        """Triton reports a clash only after the models have loaded, so its ports are tried before anything else."""
        names = {name: BY_KEY[key].names[0] for name, key in PORT_KEYS.items()}
        taken = [name for name, port in ports.items() if not is_free(host, port)]
        if taken:
            told = ", ".join(f"{names[name]} is {ports[name]}" for name in taken)
            raise PortError(f"{told} but that is in use on {host}. Stop what listens there, or set another port.")

    def _tls(self) -> Tls | None:
        resolution = self.plan.resolution
        mode = resolution.text("ssl_mode")
        if mode == "DISABLED":
            return None
        certificate, key = resolution.text("ssl_certs_path"), resolution.text("ssl_key_path")
        return Tls(certificate=certificate, key=key, ca=resolution.text("ssl_ca_certs_path") if mode == "MTLS" else "")

    def _model(self, readiness: Readiness) -> Path:
        """Return the model's folder, fetched where that is needed and allowed."""
        plan = self.plan
        if not plan.model:
            return plan.folder
        if plan.resolution.switch("disable_download"):
            raise DownloadError(
                f"{plan.model} is not in the cache {plan.cache.root} and NIM_DISABLE_MODEL_DOWNLOAD is 1. Stage it with"
                f" `download-to-cache --model-uri {plan.model}` on a machine with a network, and mount that cache."
            )
        readiness.phase = "fetching the model"
        return fetch(plan.model, plan.cache, self.log.info)

    def _server(self, host: str, ports: Mapping[str, int]) -> Server:
        settings = self.plan.engine_settings(self.machine)
        config = parse_serving_config(settings)
        options = ServerOptions(
            repository=self.places.repository,
            settings=settings,
            host=host,
            http_port=ports["http"],
            grpc_port=ports["grpc"],
            metrics_port=ports["metrics"],
            drain_timeout_s=config.drain_timeout_s,
        )
        return Server(options, on_log=self._on_log)

    def _on_log(self, line: str) -> None:
        text = news(line)
        if text:
            self.log.info(text)
        else:
            self.log.debug(line)

    @contextlib.contextmanager
    def _gateway(self, folder: Path, front: Front) -> Iterator[Gateway]:
        """The gateway, which waits for the front's port. It goes last: Triton has drained."""
        plan = self.plan
        with tempfile.TemporaryDirectory(prefix="dsv4-nim-") as temporary:
            told = Path(temporary) / "facts.json"
            told.write_text(json.dumps(facts(plan, self.places)), encoding="utf-8")
            gateway = Gateway(gateway_arguments(plan.resolution, folder, plan.served_name, told), self.log, front)
            gateway.start()  # beside the model's loading: its imports take seconds
            try:
                yield gateway
            finally:
                gateway.stop()

    def _first_answer(self, server: Server, readiness: Readiness) -> None:
        """Try a real inference. Raises: LaunchError when there is no answer."""
        readiness.phase = "waiting for the first answer"
        with (
            Client(server.grpc_address) as client,
            client.generate(FIRST_REQUEST, max_tokens=1, timeout_s=FIRST_ANSWER_S) as events,
        ):
            finals = [event for event in events if isinstance(event, Final)]
        if not finals or finals[-1].finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            told = f"{finals[-1].finish_reason.value}: {finals[-1].error}" if finals else "nothing"
            raise LaunchError(f"the first request ended with {told}. Triton's log ends:\n{server.log_tail()}")


@contextlib.contextmanager
def _answering(front: Front) -> Iterator[Front]:
    """Our routes on a port: live at once."""
    front.start()
    try:
        yield front
    finally:
        front.stop()


def _serves(http_port: int) -> bool:
    """Tell whether Triton has the ensemble loaded now; while it drains it has not."""
    return Control(host="127.0.0.1", port=http_port, timeout_s=PROBE_S).index().get(ENSEMBLE) == "READY"
