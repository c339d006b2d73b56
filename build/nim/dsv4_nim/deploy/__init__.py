"""Manifests for a cluster, a compose file, a dashboard and alerts, written from a profile and our own metrics."""
