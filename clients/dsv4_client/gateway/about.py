"""Everything that is no generation: models, tokens, health, metrics, and what NIM's clients ask of a service."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from dsv4_backend.chat import Protocol
from dsv4_backend.text import join_bytes
from dsv4_client.gateway import schemas
from dsv4_client.gateway.answers import read_body
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.http import JsonReply
from dsv4_client.gateway.requests import Body, read_json, switch
from dsv4_client.gateway.service import Service

METRICS_S = 5.0
LICENSE = "Apache-2.0"


def package_version() -> str:
    """Return the version of this package."""
    try:
        return version("dsv4-triton")
    except PackageNotFoundError:  # run from a source tree
        return "0+source"


def read_license() -> str:
    """Return the licence as the installed package has it, or the source tree; empty where neither does."""
    found = [Path(__file__).resolve().parents[3] / "LICENSE"]
    with contextlib.suppress(PackageNotFoundError):
        whole = distribution("dsv4-triton")
        found += [Path(str(whole.locate_file(file))) for file in whole.files or () if file.name == "LICENSE"]
    return next((file.read_text(encoding="utf-8") for file in found if file.is_file()), "")


def add_about(router: APIRouter, service: Service) -> None:
    """Declare the endpoints."""
    _add_models(router, service)
    _add_health(router, service)
    _add_facts(router, service)
    _add_tokens(router, service)


def _add_models(router: APIRouter, service: Service) -> None:
    created = int(time.time())

    async def model(name: str) -> Body:
        length = await service.model_length()
        return {"id": name, "object": "model", "created": created, "owned_by": "deepseek-ai", "root": name,
                "parent": None, "max_model_len": length}  # fmt: skip

    @router.get("/v1/models", response_model=None)
    async def models() -> Response:
        names = [name for name in service.settings.model_names if name != "*"] or [service.settings.model_name]
        return JSONResponse({"object": "list", "data": [await model(name) for name in names]})

    @router.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(await model(name))


def _add_health(router: APIRouter, service: Service) -> None:
    @router.get("/v1/health/live", response_model=None)
    async def live() -> Response:
        return JSONResponse({"object": "health.response", "message": "live", "status": "live"})

    async def ready() -> Response:
        if not await service.client.is_ready():
            raise ApiError(503, "the model server is not ready. Try again soon.", "not_ready", retry_after_s=2.0)
        return JSONResponse({"object": "health.response", "message": "ready", "status": "ready"})

    for path in ("/health", "/v1/health/ready"):
        router.get(path, response_model=None)(ready)

    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.render() + await _triton_metrics(service))

    for path in ("/metrics", "/v1/metrics"):
        router.get(path, response_model=None)(metrics)


def _add_facts(router: APIRouter, service: Service) -> None:
    for path, content in {**_own_facts(service), **service.settings.facts}.items():
        router.get(path, response_model=None)(_teller(content))


def _teller(content: Any) -> Callable[[], Awaitable[Response]]:
    async def fact() -> Response:
        return JSONResponse(content)

    return fact


def _own_facts(service: Service) -> dict[str, Any]:
    name = service.settings.model_name
    return {
        "/version": {"version": package_version()},
        "/v1/version": {"release": package_version(), "api": "v1"},
        "/v1/metadata": {"version": package_version(), "modelInfo": [{"modelUrl": "", "shortName": name}],
                         "selectedModelProfileId": "", "licenseInfo": {"name": LICENSE}},
        "/v1/license": {"name": LICENSE, "content": read_license()},
        "/v1/manifest": {"model": name, "checkpoint": service.settings.checkpoint.name, "files": _files(service)},
    }  # fmt: skip


def _files(service: Service) -> list[Body]:
    folder = service.settings.checkpoint
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [folder]
    return [{"name": path.name, "size_bytes": path.stat().st_size} for path in paths]


def _add_tokens(router: APIRouter, service: Service) -> None:
    @router.post("/tokenize", openapi_extra=schemas.TOKENIZE, response_model=None)
    async def tokenize(request: Request) -> Response:
        body, size = await read_json(service, request)
        service.check_model(body.get("model"))
        return JsonReply(service, _tokenize(service, body, size))

    @router.post("/detokenize", openapi_extra=schemas.DETOKENIZE, response_model=None)
    async def detokenize(request: Request) -> Response:
        body, _ = await read_json(service, request)
        service.check_model(body.get("model"))
        tokens = body.get("tokens")
        size = service.vocabulary.size
        if not isinstance(tokens, list) or not all(type(each) is int and 0 <= each < size for each in tokens):
            raise ApiError(400, f"tokens must be a list of ids from 0 to {size - 1}.", param="tokens")
        return JSONResponse({"prompt": join_bytes(service.vocabulary, tokens).decode("utf-8", "replace")})


async def _tokenize(service: Service, body: Body, size: int) -> Body:
    """Return the ids of a text, or of a whole chat."""
    if "messages" in body:
        reading = await read_body(service, Protocol.CHAT, body, size)
        ids = (await asyncio.to_thread(service.encoder.prompt, reading)).token_ids
    else:
        text = body.get("prompt")
        if not isinstance(text, str):
            raise ApiError(400, f"prompt is {text!r:.60} but must be a string; or send messages.", param="prompt")
        encode = service.text.encode if switch(body, "add_special_tokens", default=True) else service.text.encode_bare
        ids = await asyncio.to_thread(encode, text)
    return {"tokens": list(ids), "count": len(ids), "max_model_len": await service.model_length()}


async def _triton_metrics(service: Service) -> str:
    """Return the server's own metrics; a line that says so when they cannot be had."""
    url = service.settings.triton_metrics_url
    if not url:
        return ""

    def fetch() -> Any:
        with urllib.request.urlopen(url, timeout=METRICS_S) as reply:
            return reply.read().decode("utf-8", "replace")

    try:
        return str(await asyncio.to_thread(fetch))
    except (OSError, urllib.error.URLError):
        return "# the server's metrics cannot be read now\n"
