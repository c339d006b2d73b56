"""The application: every route, every limit, one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dsv4_backend.errors import Dsv4Error
from dsv4_client.gateway.about import add_about, package_version
from dsv4_client.gateway.chat import add_chat
from dsv4_client.gateway.completions import add_completions
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.http import logged
from dsv4_client.gateway.messages import add_messages
from dsv4_client.gateway.middleware import Gate
from dsv4_client.gateway.responses import add_responses
from dsv4_client.gateway.service import Service


def make_app(service: Service) -> FastAPI:
    """Build the application of a service; its connection is closed when the application ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.client.close()

    app = FastAPI(
        title="DeepSeek-V4 gateway", version=package_version(), docs_url=None, redoc_url=None, lifespan=lifespan
    )
    router = APIRouter()
    for add in (add_chat, add_completions, add_responses, add_messages, add_about):
        add(router, service)
    app.include_router(router)
    for kind in (ApiError, Dsv4Error, HTTPException, Exception):
        app.add_exception_handler(kind, _handle)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        origins = list(service.settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return app


async def _handle(request: Request, failure: Exception) -> JSONResponse:
    if isinstance(failure, HTTPException):
        known = "no such path." if failure.status_code == 404 else str(failure.detail)
        failure = ApiError(failure.status_code, f"{request.method} {request.url.path[:80]}: {known}")
    error = logged(request.scope, failure)
    return JSONResponse(error.body(request.url.path), status_code=error.status, headers=error.headers)
