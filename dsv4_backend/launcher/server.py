"""One tritonserver, from its run directory to its clean end.

start ─► wait_ready ─► … ─► drain_and_stop: unload ─► wait for streams ─► SIGTERM ─► wait ─► remove what is ours
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from dsv4_backend.config import END_MARKER
from dsv4_backend.errors import ConfigError, LaunchError
from dsv4_backend.launcher.control import Control
from dsv4_backend.launcher.idle import IdleWatch
from dsv4_backend.launcher.installation import Installation, find_installation
from dsv4_backend.launcher.ports import PORT_NAMES, free_ports, require_free
from dsv4_backend.launcher.process import ChildProcess, pids_with_argument
from dsv4_backend.launcher.repository import RunDirectory, remove_shared_memory, remove_stale

POLL_S = 0.05
HELD_OPEN_S = 3.0  # for a server that only idle connections keep alive
CONFIGURED_MODELS = ("dsv4_runtime", "dsv4_tokenizer", "dsv4_detokenizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What to serve and where.

    Units: ports 0 = any free one; *_s in seconds.
    Rule:  settings go as string parameters into the configs of `configured_models`. `models` are loaded at the start
           (an ensemble pulls its steps) and unloaded first when draining; "*" loads everything.
           At the drain limit the runtime ends its requests, for which it has end_grace_s.
    """

    repository: Path
    models: tuple[str, ...] = ("dsv4",)
    configured_models: tuple[str, ...] = CONFIGURED_MODELS
    settings: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    installation: Installation | None = None
    drain_timeout_s: float = 30.0
    exit_timeout_s: float = 20.0
    end_grace_s: float = 5.0
    arguments: tuple[str, ...] = ()


class Server:
    """Owns one tritonserver process, its ports, its run directory and its shared memory."""

    def __init__(self, options: ServerOptions, *, on_log: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.shm_prefix = f"dsv4_{os.getpid()}_{uuid.uuid4().hex[:8]}_"
        self.exit_code: int | None = None
        self._is_held_open = False
        self._on_log = on_log
        self._process: ChildProcess | None = None
        self._directory: RunDirectory | None = None
        self._ports = self._choose_ports()

    @property
    def http_port(self) -> int:
        """Port of HTTP."""
        return self._ports["http"]

    @property
    def grpc_port(self) -> int:
        """Port of gRPC."""
        return self._ports["grpc"]

    @property
    def metrics_port(self) -> int:
        """Port of /metrics."""
        return self._ports["metrics"]

    @property
    def local_host(self) -> str:
        """The address at which this machine reaches the server."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.options.host, self.options.host)

    @property
    def http_address(self) -> str:
        """`host:port` of HTTP."""
        return f"{self.local_host}:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        """`host:port` of gRPC."""
        return f"{self.local_host}:{self.grpc_port}"

    @property
    def metrics_address(self) -> str:
        """`host:port` of /metrics."""
        return f"{self.local_host}:{self.metrics_port}"

    @property
    def run_directory(self) -> Path | None:
        """Where the private copy of the model repository lies, or lay."""
        return self._directory.path if self._directory else None

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._started().pid

    @property
    def control(self) -> Control:
        """The control calls of this server."""
        return Control(host=self.local_host, port=self.http_port)

    def start(self) -> None:
        """Check the ports, write the run directory and start the process; returns before the models have loaded.

        Raises: ConfigError for taken ports, a missing server, or a missing repository.
        """
        if self._process:
            raise ConfigError(f"this server was started before, as process {self._process.pid}. Make a new one.")
        installation = self.options.installation or find_installation()
        installation.check()
        require_free(self.options.host, self._ports.items())
        options = self.options
        remove_stale()
        directory = RunDirectory(options.repository, options.settings, options.configured_models, self.shm_prefix)
        self._directory = directory
        try:
            command = self._command(installation, directory)
            self._process = ChildProcess(command, _environment(installation), self._on_log)
        except OSError:
            self._remove_what_is_ours()
            raise

    def is_ready(self) -> bool:
        """Tell whether requests can be sent.

        Raises: LaunchError with the end of the log when the server has ended.
        """
        if self.poll() is not None:
            raise LaunchError(self.death_notice())
        return self.control.is_ready()

    def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Wait until requests can be sent. Raises: LaunchError when the server ends or takes longer."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise LaunchError(f"tritonserver is not ready after {timeout_s:g} s. Its log ends:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def poll(self) -> int | None:
        """Return the exit code, or None while the server runs."""
        return self._process.poll() if self._process else self.exit_code

    def log_tail(self, num_lines: int = 30) -> str:
        """Return the last lines of the server's log."""
        return self._process.tail(num_lines) if self._process else ""

    def death_notice(self) -> str:
        """Say how the server ended and what it said last."""
        code = self.poll()
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return f"tritonserver ended by itself {how}. Its log ends:\n{self.log_tail()}"

    def drain_and_stop(self, should_hurry: Callable[[], bool] = lambda: False) -> int:
        """Let running streams finish within the drain limit, stop the server and remove what it left.

        Rule:   `should_hurry` is asked while waiting; once true, streams are cut short.
                Calling it again is harmless. Returns the server's exit code; negative when it had to be killed.
        """
        process = self._process
        if process is None:
            return self.exit_code or 0
        try:
            if process.poll() is None and self.control.is_ready():
                self._drain(should_hurry)
            return self._stop(process)
        finally:
            self._remove_what_is_ours()

    def kill(self) -> None:
        """End the server at once (SIGKILL) and remove what it left."""
        if self._process:
            self._process.send(signal.SIGKILL)
            self.exit_code = self._process.wait(self.options.exit_timeout_s)
        self._remove_what_is_ours()

    def __enter__(self) -> Server:
        """Start, and wait until ready."""
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Drain and stop."""
        self.drain_and_stop()

    def _started(self) -> ChildProcess:
        if self._process is None:
            raise ConfigError("this server is not running. Call start() first.")
        return self._process

    def _choose_ports(self) -> dict[str, int]:
        options = self.options
        asked = dict(zip(PORT_NAMES, (options.http_port, options.grpc_port, options.metrics_port), strict=True))
        spare = iter(free_ports(len(PORT_NAMES), host=options.host))
        return {name: port or next(spare) for name, port in asked.items()}

    def _command(self, installation: Installation, directory: RunDirectory) -> list[str]:
        options = self.options
        listen = [
            flag
            for name in PORT_NAMES
            for flag in (f"--{name}-address={options.host}", f"--{name}-port={self._ports[name]}")
        ]
        return [
            str(installation.server),
            f"--model-repository={directory.repository}",
            f"--backend-directory={installation.root / 'backends'}",
            f"--cache-directory={installation.root / 'caches'}",
            "--model-control-mode=explicit",  # unloading is how we drain
            "--disable-auto-complete-config",  # our configs are complete; it would start every stub twice
            *[f"--load-model={model}" for model in options.models],
            *listen,
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--exit-timeout-secs={max(1, int(options.exit_timeout_s) // 2)}",
            *options.arguments,
        ]

    def _drain(self, should_hurry: Callable[[], bool]) -> None:
        """Refuse new requests, let running ones finish within the limit, end the rest, then unload the steps."""
        deadline = time.monotonic() + self.options.drain_timeout_s
        index = self.control.index()
        served = [model for model in self.options.models if model in index] or list(index)
        metrics = Control(host=self.local_host, port=self.metrics_port)
        watch = IdleWatch(lambda: metrics.text("/metrics"))
        if not self._unload(served, lambda: time.monotonic() > deadline or should_hurry() or watch.is_idle()):
            self._is_held_open = watch.is_idle()
            if not self._is_held_open and self._end_requests():
                ended = time.monotonic() + self.options.end_grace_s
                self._unload(served, lambda: time.monotonic() > ended or watch.is_idle())
                self._is_held_open = watch.is_idle()
        steps = [model for model, state in self.control.index().items() if model not in served and state == "READY"]
        grace = time.monotonic() + self.options.end_grace_s
        limit = grace if self._is_held_open else max(deadline, grace)
        self._unload(steps, lambda: time.monotonic() > limit or should_hurry())

    def _unload(self, models: list[str], must_go_on: Callable[[], bool]) -> bool:
        """Unload models and wait until none has running requests. Returns False when `must_go_on` came first."""
        for model in models:
            self.control.unload(model)
        while self.poll() is None:
            states = self.control.index()
            if not any(states.get(model) in ("UNLOADING", "READY") for model in models):
                return True
            if must_go_on():
                return False
            time.sleep(POLL_S)
        return True

    def _end_requests(self) -> bool:
        """Tell the runtime to end what still runs, so that every client gets a finish reason and a final response."""
        if self.run_directory:
            (self.run_directory / END_MARKER).touch()
        return self.run_directory is not None

    def _stop(self, process: ChildProcess) -> int:
        if process.poll() is None:
            process.send(signal.SIGTERM)
        code = process.wait(HELD_OPEN_S if self._is_held_open else self.options.exit_timeout_s)
        if code is None:
            process.send(signal.SIGKILL)
            code = process.wait(self.options.exit_timeout_s)
        if code and self._is_held_open:
            code = 0  # every request was answered; what was cut were idle connections
            self._say("every request is answered; idle client connections that stayed open were cut")
        self.exit_code = code if code is not None else -int(signal.SIGKILL)
        return self.exit_code

    def _say(self, text: str) -> None:
        if self._on_log:
            self._on_log(text)

    def _remove_what_is_ours(self) -> None:
        """Stubs that outlived the server, shared memory under our prefix, and the run directory."""
        for pid in pids_with_argument(self.shm_prefix):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._process:
            self._process.close()
        remove_shared_memory(self.shm_prefix)
        if self._directory:
            self._directory.remove()


def _environment(installation: Installation) -> dict[str, str]:
    """Our environment, with the models' interpreter and its library first."""
    environment = dict(os.environ)
    for name, folders in (("PATH", (installation.python_bin,)), ("LD_LIBRARY_PATH", installation.library_dirs)):
        parts = [str(folder) for folder in folders]
        parts += [environment[name]] if environment.get(name) else []
        if parts:
            environment[name] = ":".join(parts)
    return environment
