"""Subcommands of `dsv4`, one file each; `cli.py` says what such a file provides."""
