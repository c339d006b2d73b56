"""Subcommands of `dsv4` that talk to a running server or need none."""
