"""One listening socket goes from the process that answers first to the gateway, so that the port is never closed.

Both hold an end of a Unix socket. The gateway makes everything else, says so, and waits; the holder of the port accepts
no more connections and gives the socket. Those who come in between wait in the socket's queue.
"""

from __future__ import annotations

import contextlib
import socket

from dsv4_backend.errors import ConfigError

READY, GIVEN = b"ready", b"listener"


def take_listener(number: int) -> socket.socket:
    """Say that everything is made and return the listening socket, once it is given over the inherited socket `number`.

    Raises: ConfigError when `number` is no such socket, or its other end is closed instead.
    """
    given: list[int] = []
    with contextlib.suppress(OSError), socket.socket(fileno=number) as line:
        line.sendall(READY)
        given = socket.recv_fds(line, len(GIVEN), 1)[1]
    if not given:
        raise ConfigError(
            f"--listener-from is {number} but no listening socket came over it. Leave it out: nim-serve sets it."
        )
    return socket.socket(fileno=given[0])


def is_wanted(line: socket.socket) -> bool:
    """Wait until the other end wants the listening socket; False when it is closed instead."""
    with contextlib.suppress(OSError):
        return line.recv(len(READY)) == READY
    return False


def give_listener(line: socket.socket, listener: socket.socket) -> bool:
    """Give the other end a listening socket; this process keeps its own. False when nobody is there to take it."""
    with contextlib.suppress(OSError, ValueError):
        socket.send_fds(line, [GIVEN], [listener.fileno()])
        return True
    return False
