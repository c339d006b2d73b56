"""What of the server's log a person sees."""

from __future__ import annotations

import pytest

from dsv4_backend.launcher import news


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('I1123 23:11:05.918727 9475 model.py:21] "loaded 3 of 7 shards"', "loaded 3 of 7 shards"),
        ('I1123 23:11:05.922700 9475 grpc_server.cc:2558] "Started GRPCInferenceService"', ""),
        ('E1123 23:11:05.922700 9475 model_lifecycle.cc:642] "failed to load \\"m\\""', 'error: failed to load "m"'),
        ('E1123 23:11:04.555024 9475 server.cc:241] "CudaDriverHelper has not been initialized."', ""),
        ("dsv4 INFO dsv4_backend.runner.executors: weights: 5 % of 9.2 MB loaded", "weights: 5 % of 9.2 MB loaded"),
        ("dsv4 ERROR dsv4_backend.runner: rank 0 is gone", "error: rank 0 is gone"),
        ("+-------+---------+--------+", ""),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
    ],
)
def test_our_words_and_errors_are_shown_and_noise_is_not(line: str, shown: str) -> None:
    assert news(line) == shown
