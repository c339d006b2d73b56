"""Operators of DeepSeek-V4: torch references, the specification, and C++ twins for the CPU.

    tensors.py    quantised weights and their exact values          ops.py       every operator and its rules
    reference/    obvious float32 torch                             cpu/         C++ twins, batch-invariant
    dispatch.py   bind("cpu") chooses one table at process start    build.py     compiles the twins ahead of time

The package imports nothing of the rest of the project.
"""
