"""Ownership of one `tritonserver` process: find it, start it, watch it, drain it, leave nothing behind."""

from dsv4_backend.launcher.companion import Companion
from dsv4_backend.launcher.installation import Installation, find_installation
from dsv4_backend.launcher.lines import news
from dsv4_backend.launcher.ports import free_ports, require_free
from dsv4_backend.launcher.server import Server, ServerOptions
from dsv4_backend.launcher.supervisor import Supervisor

__all__ = [
    "Companion",
    "Installation",
    "Server",
    "ServerOptions",
    "Supervisor",
    "find_installation",
    "free_ports",
    "news",
    "require_free",
]
