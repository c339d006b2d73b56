"""Checkpoints: find and validate the files, read weights one at a time, write small random ones.

Importing the package loads no torch: `dsv4 check` needs none. Take `Checkpoint` from `checkpoint.load`.
"""
