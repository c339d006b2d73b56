"""What an operator meets in the image: NIM's environment, profiles and commands around `dsv4_backend`'s launcher.

environment ─ settings ─ resolve ─┐
machine ─ judge ─ catalog ────────┴► serve: cache ─► front (live) ─► Supervisor ─► first inference ─► ready
"""
