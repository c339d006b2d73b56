"""From admitted request to released chunks: the step loop and what it needs."""

from dsv4_backend.engine.engine import Engine
from dsv4_backend.engine.executor import Executor
from dsv4_backend.engine.stream import ChunkSink

__all__ = ["ChunkSink", "Engine", "Executor"]
