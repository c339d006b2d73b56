"""Clients of the dsv4 ensemble: a streaming gRPC client, the command line, load generation."""
