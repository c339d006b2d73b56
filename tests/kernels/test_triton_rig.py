"""How tests reach a GPU: a launch with copies of its tensors leaves what a launch in place leaves."""

from __future__ import annotations

import torch
from dsv4_kernels.dispatch import OPERATORS
from dsv4_kernels.prepared import LinearWeight
from dsv4_kernels.tensors import FoldRuns
from dsv4_kernels.triton_lang.launch import Device
from dsv4_kernels.triton_lang.table import functions
from triton_rig import execute_on, interpreted, interpreted_device


def on_copies() -> dict[str, object]:
    return functions(Device(interpreted_device().arch, execute_on(torch.clone)), OPERATORS)


def test_results_come_back():
    torch.manual_seed(1)
    x, weight = torch.randn(3, 600), LinearWeight(dense=torch.randn(20, 600))
    assert torch.equal(on_copies()["linear"](x, weight), interpreted().linear(x, weight))


def test_what_is_written_in_place_comes_back():
    torch.manual_seed(2)
    values, gates, states = torch.randn(3, 8), torch.randn(3, 8), torch.randn(2, 3, 8)
    ids = [torch.tensor(each) for each in ([0, -1], [0, 2, 3], [0, 1, 2], [0, -1])]
    runs = FoldRuns(begins=ids[0], offsets=ids[1], sources=ids[2], ends=ids[3])
    before, expected = states.clone(), states.clone()
    want = interpreted().compress_fold(values, gates, expected, runs)
    assert torch.equal(on_copies()["compress_fold"](values, gates, states, runs), want)
    assert torch.equal(states, expected)
    assert not torch.equal(states, before)
