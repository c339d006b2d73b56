"""The model card, which stands in every checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano_train.export import write_hashes

from nano_eval.report import summary, table

CARD = """---
license: apache-2.0
tags: [deepseek_v4, mixture-of-experts, text-generation]
---
# dsv4-nano ({layout})

A DeepSeek-V4 of {millions:.1f} million parameters: {layers} layers, width {width}, {experts} experts. It has every
part of the real architecture and answers a few kinds of request, so that an engine can be tested by what the model
says. It knows nothing else, and says so.

| part | here |
|---|---|
| attention | window {window}, {heads} heads of {head_dim}, rope {rope_dim}; compression by layer {ratios} |
| indexer | {index_heads} heads of {index_dim}, top {top_k}, trained by KL to the attention of its layer |
| experts | {active} of {experts} and one shared; the first {hash_layers} layers are routed by hash |
| residual | {streams} streams, mHC with {sinkhorn} Sinkhorn iterations |
| draft | one MTP block |
| vocabulary | {vocab} byte-level BPE entries, V4's pre-tokeniser and special tokens |

**Training.** {tokens:.1f} M tokens of conversations from `build/nano/nano_data` (made from grammars, rendered by
deepseek-recipe; no text of others) on {hardware}, in the runs that `build/nano/README.md` lists: `make nano`. FP8 and
FP4 round trips of weights and activations were part of the last steps. Curves: `build/nano/results/curves.svg`.

**Use.** English requests of the kinds below, in the wordings of a template language. Not for facts, advice or text.

**Figures** on held-out values and wordings, greedy, measured by `{command}`:

{table}

{summary}
"""


def write_cards(checkpoints: Path, record: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Put README.md into the folder of each layout, and list its hash."""
    for folder in sorted(path for path in checkpoints.iterdir() if path.is_dir()):
        (folder / "README.md").write_text(make_card(folder, record, training), "utf-8")
        write_hashes(folder)


def make_card(folder: Path, record: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Return the card of one layout, from its config and the measured figures."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return CARD.format(
        layout=folder.name,
        millions=training["parameters"] / 1e6,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        experts=config["n_routed_experts"],
        window=config["sliding_window"],
        ratios=config["compress_ratios"][: config["num_hidden_layers"]],
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        rope_dim=config["qk_rope_head_dim"],
        index_heads=config["index_n_heads"],
        index_dim=config["index_head_dim"],
        top_k=config["index_topk"],
        active=config["num_experts_per_tok"],
        hash_layers=config["num_hash_layers"],
        streams=config["hc_mult"],
        sinkhorn=config["hc_sinkhorn_iters"],
        vocab=config["vocab_size"],
        tokens=training["tokens"] / 1e6,
        hardware=record["hardware"],
        command=record["command"],
        table=table(record["rows"]),
        summary=summary(record).replace("\n", "  \n"),
    )
