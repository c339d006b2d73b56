"""Which opcode each product is due on each architecture, and the declared fallbacks with their reasons."""

from __future__ import annotations

from dsv4_kernels.triton_lang.arch import Arch

# What is multiplied → the opcode of its product on wgmma (sm_90), tcgen05 (sm_100a, sm_103a) and mma.sync (sm_120a).
# "dense float32" is mHC's projection, in three tf32 products.
WGMMA, TCGEN05, MMA = "wgmma.mma_async", "tcgen05.mma kind::", "mma.sync"
OPCODES = {
    "dense": {"wgmma": f"{WGMMA} bf16", "tcgen05": f"{TCGEN05}f16", "mma.sync": f"{MMA} bf16"},
    "dense float32": {"wgmma": f"{MMA} tf32", "tcgen05": f"{MMA} tf32", "mma.sync": f"{MMA} tf32"},
    "fp8": {"wgmma": f"{WGMMA} e4m3"},
    "mxfp8": {"tcgen05": f"{TCGEN05}mxf8f6f4.block_scale", "mma.sync": f"{MMA} kind::mxf8f6f4.block_scale"},
    "mxfp4": {"tcgen05": f"{TCGEN05}mxf8f6f4.block_scale"},
    "mxfp4_as_fp8": {"mma.sync": f"{MMA} kind::mxf8f6f4.block_scale"},
    "mxfp4_as_bf16": {"wgmma": f"{WGMMA} bf16"},
    "nvfp4": {"tcgen05": f"{TCGEN05}mxf4nvf4.block_scale", "mma.sync": f"{MMA} kind::mxf4nvf4.block_scale"},
    "nvfp4_as_bf16": {"wgmma": f"{WGMMA} bf16", "tcgen05": f"{TCGEN05}f16", "mma.sync": f"{MMA} bf16"},
    "mxfp4 x mxfp4": {"tcgen05": f"{TCGEN05}mxf4.block_scale", "mma.sync": f"{MMA} kind::mxf4nvf4.block_scale"},
}
FALLBACKS = {
    "dense float32": "24 rows and few tokens do not fill wgmma or tcgen05; three tf32 products, memory-bound",
    "mxfp4_as_bf16": "sm_90 has no FP4 tensor core: codes and scales are widened to bf16, exactly",
    "nvfp4_as_bf16": "16-bit tokens (W4A16), or no FP4 tensor core: code times scale is widened to bf16, exactly",
    "mxfp4_as_fp8": "sm_120a does not multiply e4m3 by e2m1: the weight is widened to e4m3, exactly",
}


def due(arch: Arch, format: str) -> str:
    """The opcode that a product of this format must become; "" for kernels without a product."""
    return OPCODES.get(format, {}).get(arch.tensor_core, "")


def why(arch: Arch, format: str) -> str:
    """Why a kernel is as it is, in one line."""
    if not format:
        return "no product: bound by memory"
    reason = FALLBACKS.get(format)
    return f"{due(arch, format)}: {reason}" if reason else f"{due(arch, format)}, native"
