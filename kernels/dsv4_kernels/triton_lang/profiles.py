"""The released shapes as data: what the kernels are compiled for before a GPU is at hand."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_kernels.rows import RowFormat, RowSpec

STREAMS = 4
WINDOW = 128
TOP_EXPERTS = 6
HEAD_DIM = 512
ROPE_DIM = 64
INDEX_HEADS = 64
INDEX_DIM = 128
CSA_RATIO = 4
HCA_RATIO = 128
ENTRY = RowSpec(format=RowFormat.PACKED, width=HEAD_DIM, rope_dim=ROPE_DIM)
INDEX_KEYS = (RowSpec(format=RowFormat.FP4, width=INDEX_DIM), RowSpec(format=RowFormat.FP8, width=INDEX_DIM))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What differs between the two models. Source: their config.json, shared facts `deepseek_v4.md` section 1."""

    name: str
    hidden: int
    heads: int
    q_rank: int
    out_groups: int
    out_rank: int
    index_topk: int
    experts: int
    inter: int
    vocab: int = 129_280


PROFILES = {
    one.name: one
    for one in (
        Profile(
            name="flash",
            hidden=4096,
            heads=64,
            q_rank=1024,
            out_groups=8,
            out_rank=1024,
            index_topk=512,
            experts=256,
            inter=2048,
        ),
        Profile(
            name="pro",
            hidden=7168,
            heads=128,
            q_rank=1536,
            out_groups=16,
            out_rank=1024,
            index_topk=1024,
            experts=384,
            inter=3072,
        ),
    )
}
