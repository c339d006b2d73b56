"""Kernels in the Triton language: what runs on the GPU. The host side, one folder up, checks shapes and launches them.

Rule: every kernel compiles for sm_90, sm_100a, sm_103a and sm_120a, and runs in the interpreter.
      Pointers carry their element type; arithmetic is float32; a store rounds to the type of its pointer.
"""
