"""When a server has no work left, and when that cannot be known."""

from __future__ import annotations

from dsv4_backend.launcher.idle import IDLE_S, IdleWatch, has_requests

IDLE = "dsv4_running_requests 0\ndsv4_waiting_requests 0\n"
BUSY = "dsv4_running_requests 2\ndsv4_waiting_requests 0\n"


def test_a_server_without_our_gauges_is_never_called_idle() -> None:
    assert has_requests("") and has_requests("nv_gpu_utilization 0\n")


def test_waiting_requests_are_work() -> None:
    assert has_requests("dsv4_running_requests 0\ndsv4_waiting_requests 1\n")


def test_idle_is_what_stays_idle() -> None:
    now = [0.0]
    watch = IdleWatch(lambda: IDLE, lambda: now[0])
    assert not watch.is_idle()
    now[0] = IDLE_S
    assert watch.is_idle()


def test_work_in_between_begins_the_wait_anew() -> None:
    now, page = [0.0], [IDLE]
    watch = IdleWatch(lambda: page[0], lambda: now[0])
    watch.is_idle()
    now[0], page[0] = IDLE_S, BUSY
    assert not watch.is_idle()
    page[0] = IDLE
    assert not watch.is_idle()
