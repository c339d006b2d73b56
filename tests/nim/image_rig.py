"""What the tests of the image share: a registry on loopback, a built image, a running container."""

from __future__ import annotations

import http.client
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import tritonclient.grpc as grpcclient
from dsv4_image.build import Build
from dsv4_image.cli import RUN_OPTIONS
from dsv4_image.supply import push
from dsv4_image.tools import Tools

from dsv4_backend.launcher import free_ports

ROOT = Path(__file__).parents[2]
PORTS = ("NIM_SERVER_PORT", "NIM_HTTP_TRITON_PORT", "NIM_TRITON_GRPC_PORT", "NIM_TRITON_METRICS_PORT")


@dataclass
class Figures:
    """Seconds and bytes as they were measured. `*_cpu_s` is what the tools computed, whatever else the machine did."""

    values: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        started, computed = time.monotonic(), _children_s()
        yield
        self.values |= {
            f"{name}_s": round(time.monotonic() - started, 1),
            f"{name}_cpu_s": round(_children_s() - computed, 1),
        }

    def write(self, name: str, command: str) -> None:
        """Keep them beside the tests, with what produced them, and print them (pytest -s shows it)."""
        path = ROOT / "tests" / "results" / name
        path.parent.mkdir(exist_ok=True)
        record = {"command": command, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), **self.values}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        sys.stdout.write(f"\n{json.dumps(record, indent=2)}\n")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def build_measured(tag: str, figures: Figures) -> Build:
    """Build in the checkout's own store, which keeps the bases from run to run; note the time and the size."""
    store = ROOT / "build" / "cache" / "image" / "store"
    made = Build(root=ROOT, tools=Tools(store), tag=tag)
    with figures.timing("make"):  # without what an earlier run left: wheels, bases, an image of the same sources
        made.run()
    last = made.last()
    if last is not None:
        figures.values["build_s"] = last.seconds
    figures.values["image_bytes"] = int(made.tools.podman("image", "inspect", "--format={{.Size}}", tag))
    return made


@dataclass(frozen=True)
class Pushed:
    """An image in a registry."""

    tools: Tools
    target: str
    digest: str

    @property
    def repository(self) -> str:
        return self.target.rpartition(":")[0]

    @property
    def by_digest(self) -> str:
        return f"{self.repository}@{self.digest}"


def push_measured(build: Build, folder: Path, address: str, figures: Figures) -> Pushed:
    """Push the image of a build; seconds and bytes go to the figures."""
    target = f"{address}/nim/dsv4:test"
    with figures.timing("push"):
        digest = push(build.tools, build.tag, target, is_plain_http=True)
    blobs = (path for path in (folder / "registry").rglob("data") if path.is_file())
    figures.values["pushed_bytes"] = sum(path.stat().st_size for path in blobs)
    return Pushed(build.tools, target, digest)


@contextmanager
def empty_store(folder: Path, **variables: str) -> Iterator[Tools]:
    """Tools that have no image, and leave none: pytest would keep gigabytes of the last runs."""
    tools = Tools(folder, variables=variables)
    tools.prepare()
    try:
        yield tools
    finally:
        tools.podman("rmi", "--all", "--force")
        shutil.rmtree(tools.run_folder(), ignore_errors=True)


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry of its own on a free port of loopback; yields host:port."""
    (port,) = free_ports(1)
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    path = folder / "registry.yml"
    path.write_text(json.dumps(config), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "REGISTRY_AUTH_FILE"}
    program = shutil.which("docker-registry") or "docker-registry"
    process = subprocess.Popen(
        [program, "serve", str(path)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: status(port, "/v2/") == 200, 20.0, "the registry")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder / "registry", ignore_errors=True)


@dataclass(frozen=True)
class Container:
    """A container that runs as an operator runs it."""

    tools: Tools
    name: str
    api_port: int
    grpc_port: int

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.tools.podman("stop", "--time=40", self.name)
        return int(self.tools.podman("inspect", "--format={{.State.ExitCode}}", self.name))

    def log(self) -> str:
        """What it said."""
        return self.tools.podman("logs", self.name)


@contextmanager
def running(tools: Tools, image: str, cache: Path, name: str) -> Iterator[Container]:
    """Start the image read-only, without rights, on free ports."""
    ports = free_ports(len(PORTS))
    cache.mkdir(parents=True, exist_ok=True)
    os.chown(cache, 1000, 0)
    settings = [f"--env={name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    settings += ["--env=NIM_LOG_LEVEL=INFO", "--env=NIM_SERVER_HOST=127.0.0.1", f"--volume={cache}:/opt/nim/.cache"]
    tools.podman("run", "--detach", "--name", name, *RUN_OPTIONS, *settings, image)
    try:
        yield Container(tools, name, ports[0], ports[2])
    finally:
        tools.podman("rm", "--force", "--time=5", name)


def status(port: int, path: str) -> int:
    """HTTP status of a GET on loopback; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def body_of(port: int, path: str) -> str:
    """Body of a GET on loopback."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        return str(reply.read().decode())


def wait_for(is_so: object, timeout_s: float, what: str) -> float:
    """Wait until `is_so()` holds; return the seconds it took."""
    started = time.monotonic()
    while not is_so():  # type: ignore[operator]
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"{what} is not there after {timeout_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - started


def stream_openai(api_port: int, question: str, num_tokens: int = 16, **more: Any) -> Iterator[tuple[str, str]]:
    """Stream a chat with OpenAI's own client through the gateway; yields text and, at the end, why it ended."""
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{api_port}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        (model,) = client.models.list().data
        chunks = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": question}], max_tokens=num_tokens, stream=True,
            extra_body={"thinking": {"type": "disabled"}, **more},
        )  # fmt: skip
        for chunk in chunks:
            for choice in chunk.choices:
                yield choice.delta.content or "", choice.finish_reason or ""


def stream_chat(grpc_port: int, question: str, num_tokens: int = 16) -> list[str]:
    """Stream a chat with NVIDIA's own client; return the texts as they came."""
    body = json.dumps({"messages": [{"role": "user", "content": question}], "max_tokens": num_tokens, "stream": True})
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        request = grpcclient.InferInput("request", [1], "BYTES")
        request.set_data_from_numpy(np.array([body.encode()], dtype=np.object_))
        client.async_stream_infer("dsv4", [request], enable_empty_final_response=True)
        texts = []
        while True:
            result, error = answers.get(timeout=60)
            if error is not None:
                raise RuntimeError(str(error))
            response = result.get_response()  # type: ignore[attr-defined]
            text = result.as_numpy("text_output")  # type: ignore[attr-defined]
            if text is not None and text.size:
                texts.append(text[0].decode())
            if response.parameters["triton_final_response"].bool_param:
                client.stop_stream()
                return texts
