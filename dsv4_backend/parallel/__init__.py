"""Which part of a weight stands on which rank. Communication between ranks comes with multi-GPU serving."""

from dsv4_backend.parallel.mesh import Mesh
from dsv4_backend.parallel.shard import Role, expert_owner, local_shape, mesh_problems, shard_axis, shard_range

__all__ = ["Mesh", "Role", "expert_owner", "local_shape", "mesh_problems", "shard_axis", "shard_range"]
