"""Live, ready and who it is: what the container's routes tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv4_backend import __version__
from dsv4_backend.launcher.control import Control
from dsv4_nim.catalog import all_profiles
from dsv4_nim.front import TEXT, Reply, Route, json_reply
from dsv4_nim.manifest import manifest
from dsv4_nim.places import Places
from dsv4_nim.plan import ServePlan

LICENSE = "Apache-2.0"


@dataclass(slots=True, kw_only=True)
class Readiness:
    """Ready after one real inference, as long as Triton says that it serves the model."""

    is_served: Callable[[], bool]
    phase: str = "starting"
    has_answered: bool = False

    def is_ready(self) -> bool:
        """Tell whether requests can be sent now."""
        return self.has_answered and self.is_served()


def facts(plan: ServePlan, places: Places) -> dict[str, Any]:
    """Return what stays the same while the container runs, by path; the gateway tells it after the front."""
    model = {"shortName": plan.served_name, "modelUrl": plan.profile.uri or str(plan.folder)}
    return {
        "/v1/metadata": {
            "version": __version__,
            "modelInfo": [model],
            "selectedModelProfileId": plan.profile.id,
            "profileName": plan.profile.name,
            "licenseInfo": {"name": LICENSE, "path": "/v1/license"},
        },
        "/v1/version": {"release": __version__, "api": "v1"},
        "/v1/license": {"name": LICENSE, "content": places.license.read_text(encoding="utf-8")},
        "/v1/manifest": manifest(all_profiles()),
    }


def routes(plan: ServePlan, readiness: Readiness, places: Places, metrics: Control) -> dict[str, Route]:
    """Return NIM's routes that need no gateway."""
    model = {"id": plan.served_name, "object": "model", "created": int(time.time()), "owned_by": "deepseek-ai"}

    def ready() -> Reply:
        is_ready = readiness.is_ready()
        message = "Service is ready." if is_ready else f"Service is not ready: {readiness.phase}."
        return json_reply({"object": "health.response", "message": message}, 200 if is_ready else 503)

    def told_metrics() -> Reply:
        text = metrics.text("/metrics")
        return Reply(body=text, kind=TEXT) if text else json_reply({"error": "Triton does not answer yet"}, 503)

    def teller(reply: Reply) -> Route:
        return lambda: reply

    return {
        "/v1/health/live": lambda: json_reply({"object": "health.response", "message": "Service is live."}),
        "/v1/health/ready": ready,
        "/v1/models": lambda: json_reply({"object": "list", "data": [model]}),
        "/v1/metrics": told_metrics,
        **{path: teller(json_reply(content)) for path, content in facts(plan, places).items()},
    }
