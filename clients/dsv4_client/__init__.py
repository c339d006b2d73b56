"""Client side of the Triton model repository: streaming gRPC, the chat and generate commands, a load generator."""

from dsv4_client.errors import (
    BrokenStreamError,
    DeadlineError,
    ModelNotReadyError,
    ServerUnreachableError,
)
from dsv4_client.events import Answer, Delta, Event, Final
from dsv4_client.options import Options
from dsv4_client.stream import Client, Generation

__all__ = [
    "Answer",
    "BrokenStreamError",
    "Client",
    "DeadlineError",
    "Delta",
    "Event",
    "Final",
    "Generation",
    "ModelNotReadyError",
    "Options",
    "ServerUnreachableError",
]
