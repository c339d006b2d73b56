"""What the four architectures multiply natively, as data; what stands in where they cannot, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_kernels.errors import BindError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture.

    Units: shared_bytes is what one block may use at most.
    Rule:  formats maps how a weight is stored, with its tokens, to how it is multiplied (`device/accumulate.py`).
    """

    name: str
    capability: int
    shared_bytes: int
    tensor_core: str
    formats: dict[str, str]

    @property
    def has_tensor_memory(self) -> bool:
        """Accumulators of matrix products stand in tensor memory."""
        return self.tensor_core == "tcgen05"

    @property
    def is_small(self) -> bool:
        """Shared memory is that of a desktop card, and tensor cores are driven by single warps."""
        return self.tensor_core == "mma.sync"


_DATA_CENTRE = {"dense": "dense", "fp8": "mxfp8", "mxfp4": "mxfp4", "nvfp4": "nvfp4", "nvfp4_a16": "nvfp4_as_bf16"}
ARCHES = {
    one.name: one
    for one in (
        Arch(
            name="sm_90",
            capability=90,
            shared_bytes=232_448,
            tensor_core="wgmma",
            formats={
                "dense": "dense",
                "fp8": "fp8",
                "mxfp4": "mxfp4_as_bf16",
                "nvfp4": "nvfp4_as_bf16",
                "nvfp4_a16": "nvfp4_as_bf16",
            },
        ),
        Arch(name="sm_100a", capability=100, shared_bytes=232_448, tensor_core="tcgen05", formats=_DATA_CENTRE),
        Arch(name="sm_103a", capability=103, shared_bytes=232_448, tensor_core="tcgen05", formats=_DATA_CENTRE),
        Arch(
            name="sm_120a",
            capability=120,
            shared_bytes=101_376,
            tensor_core="mma.sync",
            formats={**_DATA_CENTRE, "mxfp4": "mxfp4_as_fp8"},
        ),
    )
}


def arch_named(name: str) -> Arch:
    """The architecture of that name.

    Raises: BindError naming the known ones.
    """
    if name not in ARCHES:
        raise BindError(f"architecture {name!r} is not known. Choose one of {', '.join(ARCHES)}.")
    return ARCHES[name]


def arch_of(capability: tuple[int, int]) -> Arch:
    """The architecture of a device of this compute capability.

    Raises: BindError if the kernels were not written for it.
    """
    number = 10 * capability[0] + capability[1]
    for one in ARCHES.values():
        if one.capability == number:
            return one
    known = ", ".join(f"{one.name} ({one.capability / 10})" for one in ARCHES.values())
    raise BindError(f"the GPU has compute capability {number / 10} but the kernels are for {known}.")
