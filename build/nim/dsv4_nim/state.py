"""Live, ready and who it is: what the container's routes tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_backend import __version__
from dsv4_backend.launcher.control import Control
from dsv4_nim.catalog import all_profiles
from dsv4_nim.front import TEXT, Reply, Route, json_reply
from dsv4_nim.manifest import manifest
from dsv4_nim.places import Places
from dsv4_nim.plan import ServePlan


@dataclass(slots=True, kw_only=True)
class Readiness:
    """Ready after one real inference, as long as Triton says that it serves the model."""

    is_served: Callable[[], bool]
    phase: str = "starting"
    has_answered: bool = False

    def is_ready(self) -> bool:
        """Tell whether requests can be sent now."""
        return self.has_answered and self.is_served()


def routes(plan: ServePlan, readiness: Readiness, places: Places, metrics: Control) -> dict[str, Route]:
    """Return NIM's routes that need no gateway."""
    started = int(time.time())
    model = {"id": plan.served_name, "object": "model", "created": started, "owned_by": "deepseek-ai"}
    metadata = {
        "version": __version__,
        "modelInfo": [{"shortName": plan.served_name, "modelUrl": plan.profile.uri or str(plan.folder)}],
        "selectedModelProfileId": plan.profile.id,
        "profileName": plan.profile.name,
        "licenseInfo": {"name": "Apache-2.0", "path": "/v1/license"},
    }

    def ready() -> Reply:
        is_ready = readiness.is_ready()
        message = "Service is ready." if is_ready else f"Service is not ready: {readiness.phase}."
        return json_reply({"object": "health.response", "message": message}, 200 if is_ready else 503)

    def told_metrics() -> Reply:
        text = metrics.text("/metrics")
        return Reply(body=text, kind=TEXT) if text else json_reply({"error": "Triton does not answer yet"}, 503)

    return {
        "/v1/health/live": lambda: json_reply({"object": "health.response", "message": "Service is live."}),
        "/v1/health/ready": ready,
        "/v1/models": lambda: json_reply({"object": "list", "data": [model]}),
        "/v1/metadata": lambda: json_reply(metadata),
        "/v1/version": lambda: json_reply({"release": __version__, "api": "1"}),
        "/v1/license": lambda: Reply(body=places.license.read_text(encoding="utf-8"), kind="text/plain"),
        "/v1/manifest": lambda: json_reply(manifest(all_profiles())),
        "/v1/metrics": told_metrics,
    }
