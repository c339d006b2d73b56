"""Subcommands of `dsv4`: each file has `HELP`, `add_arguments(parser)` and `run(args) -> exit status`."""
