"""Begin a larger model with the weights of a smaller one, so that it computes what the smaller one did.

Rule: layers of the smaller model become, in order, the first layers of the same kind; a layer in between begins as a
      copy of its neighbour whose sublayers put out zero, and leaves the streams almost as they are.
      Wider ranks and experts get random rows at their input and zeros at their output. The queries' latent changes its
      scale, which the norm of each head removes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dsv4_backend.config import ModelConfig
from nano_train.weights import Weights, is_buffer

SILENT = ("attn.wo_b.weight", "ffn.experts.w2", "ffn.shared_experts.w2.weight")
FED_BY_WIDER = (*SILENT, "attn.wq_b.weight", "attn.indexer.wq_b.weight")  # their new columns are zero
_INPUTS = ("attn.wq_a.weight", "attn.q_norm.weight", "attn.wo_a.weight", "ffn.experts.w13")
WIDENED = (*FED_BY_WIDER, *_INPUTS, "ffn.shared_experts.w1.weight", "ffn.shared_experts.w3.weight")
KEPT_STREAMS = 8.0  # e^8 to 1: what a new layer leaves in its stream
_LAYER = re.compile(r"layers\.(\d+)\.(.*)")


def grown(old: Weights, old_config: ModelConfig, new: Weights, config: ModelConfig) -> Weights:
    """Return the weights of the larger model. `new` holds its initial weights; a draft block may come from there.

    Raises: ValueError if the larger model cannot hold the smaller one, as when a layer is routed in another way.
    """
    sources = placed([layer.ratio for layer in old_config.layers], [layer.ratio for layer in config.layers])
    result: Weights = {}
    for name, initial in new.items():
        source, is_copy = _source(name, sources)
        if source not in old and not is_copy and not name.startswith("mtp."):
            raise ValueError(
                f"{name} is not in the checkpoint. Route its layers by hash as before, and keep their parts."
            )
        if source not in old or (is_copy and ".hc_" in name):
            result[name] = _quiet_streams(name, initial, config.hc_mult) if is_copy else initial
        elif is_copy and name.endswith(SILENT):
            result[name] = torch.zeros_like(initial)
        else:
            groups = config.o_groups if ".wo_" in name else 1
            result[name] = _widened(name, old[source].detach(), initial.detach(), groups)
        result[name] = result[name].detach().clone().requires_grad_(not is_buffer(name))
    return result


def placed(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, bool]]:
    """Return for each layer of the larger model the layer it begins with, and whether it is a copy that adds nothing.

    Raises: ValueError if the ratios of the smaller model do not occur in their order in those of the larger one.
    """
    taken, sources = 0, list[tuple[int, bool]]()
    for ratio in new:
        if taken < len(old) and old[taken] == ratio:
            sources.append((taken, False))
            taken += 1
        else:
            near = [index for index in range(len(old)) if old[index] == ratio]
            if not near:
                raise ValueError(f"no layer with ratio {ratio} in {list(old)}. Grow by kinds of layers that are there.")
            sources.append((min(near, key=lambda index: abs(index - taken)), True))
    if taken < len(old):
        raise ValueError(f"layers {list(old)} do not occur in this order in {list(new)}. Keep all of them.")
    return sources


def _source(name: str, sources: Sequence[tuple[int, bool]]) -> tuple[str, bool]:
    found = _LAYER.fullmatch(name)
    if found is None:
        return name, False
    index, is_copy = sources[int(found[1])]
    return f"layers.{index}.{found[2]}", is_copy


def _widened(name: str, old: Tensor, new: Tensor, groups: int) -> Tensor:
    """Put the smaller weight into the first rows and columns of each group or expert."""
    if old.shape == new.shape:
        return old
    is_larger = all(small <= large for small, large in zip(old.shape, new.shape, strict=True))
    if not (is_larger and name.endswith(WIDENED)):
        shapes = f"{list(new.shape)}, and {list(old.shape)} in the checkpoint"
        raise ValueError(f"{name} is {shapes}. Layers, ranks of queries and outputs, and experts' widths can grow.")
    result = torch.zeros_like(new) if name.endswith(FED_BY_WIDER) else new.clone()
    if name.endswith("wo_a.weight"):  # groups one above the other
        parts = zip(result.chunk(groups), old.chunk(groups), strict=True)
    elif name.endswith("wo_b.weight"):
        parts = zip(result.chunk(groups, 1), old.chunk(groups, 1), strict=True)
    elif name.endswith(".w13"):
        parts = zip(result.chunk(2, 1), old.chunk(2, 1), strict=True)
    else:
        parts = zip((result,), (old,), strict=True)
    for target, part in parts:
        target[tuple(slice(size) for size in part.shape)] = part
    return result


def _quiet_streams(name: str, initial: Tensor, num_streams: int) -> Tensor:
    """Return the start of a new layer's hyper-connections: each stream stays as it is."""
    if not name.endswith("_base"):
        return initial
    comb = torch.eye(num_streams, dtype=initial.dtype).flatten() * KEPT_STREAMS
    return torch.cat([initial.detach()[: 2 * num_streams], comb])
