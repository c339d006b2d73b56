"""What an operator decides about a deployment beyond its profile."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_nim.generate import DEFAULT_NODE_GPUS, NODE_GPUS
from dsv4_nim.profiles import GB, Profile

Manifest = dict[str, object]
MODEL_STORE = "/model-store"
USER, GROUP = 1000, 2000  # as NVIDIA's NIM operator runs every NIM
SHARED_MEMORY_GB = {True: 1, False: 16}  # CPU, GPU: regions of Triton and of the ranks
CPU_MEMORY_GB = 4  # the bundled model, Triton, gateway, /dev/shm


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One deployment. Secrets are named, never written."""

    profile: Profile
    image: str
    name: str = "dsv4"
    namespace: str = "default"
    storage_class: str = ""
    pull_secret: str = ""
    key_secret: str = ""
    max_replicas: int = 4
    queue_target_s: float = 1.0

    @property
    def labels(self) -> dict[str, str]:
        """What pods are selected by."""
        return {"app.kubernetes.io/name": "dsv4", "app.kubernetes.io/instance": self.name}

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one pod."""
        node = NODE_GPUS.get(self.profile.gpu, DEFAULT_NODE_GPUS)
        return min(self.profile.num_gpus, node)

    @property
    def num_nodes(self) -> int:
        """Pods that share one model."""
        return -(-self.profile.num_gpus // self.gpus_per_node) if self.profile.num_gpus else 1

    @property
    def storage_gb(self) -> int:
        """Room for the weights on disk, a half more, and at least 10."""
        stored = self.profile.weight_bytes * max(1, self.profile.num_gpus)
        return max(10, int(1.5 * stored / GB))

    def meta(self, name: str = "") -> Manifest:
        """Return the metadata of an object of this deployment."""
        return {"name": name or self.name, "namespace": self.namespace, "labels": dict(self.labels)}
