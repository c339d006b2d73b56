"""Make the small random checkpoint that `make demo` serves: a real V4 shape, 16 MB at most, the same bytes every time.

    python build/random_checkpoint.py OUT [--layout official|fp8|nvfp4|nvfp4-old|bf16] [--draft mtp|dspark|none]

Its text is noise: the weights were never trained. Everything else is as in a release: config.json, shards and index,
tokenizer.json, generation_config.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint

TOKENIZER_SCRIPT = Path(__file__).parent / "tokenizer" / "make_tokenizer.py"
DEFAULT_SEED = 4
NAME = "dsv4-random"
RATIOS = [0, 0, 4, 128, 4, 128, 4]
NUM_DSPARK_STAGES = 3


def config_values(vocab_size: int, draft: str) -> dict[str, object]:
    """Return config.json of a small model with Flash's pattern of layers."""
    values: dict[str, object] = {
        "_name_or_path": NAME,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 256,
        "num_hidden_layers": len(RATIOS),
        "num_hash_layers": 2,
        "compress_ratios": RATIOS + [0] * {"none": 0, "mtp": 1, "dspark": NUM_DSPARK_STAGES}[draft],
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 128,
        "o_groups": 4,
        "o_lora_rank": 64,
        "sliding_window": 128,
        "index_n_heads": 32,
        "index_head_dim": 64,
        "index_topk": 64,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 64,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-06,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": 1048576,
        "num_nextn_predict_layers": 0 if draft == "none" else 1,
    }
    if draft == "dspark":
        last = len(RATIOS)
        values |= {
            "dspark_block_size": 5,
            "dspark_noise_token_id": 2,
            "dspark_target_layer_ids": list(range(last - NUM_DSPARK_STAGES, last)),
            "dspark_markov_rank": 32,
        }
    return values


def make_tokenizer(file: Path) -> int:
    """Write tokenizer.json and return the size of its vocabulary."""
    subprocess.run([sys.executable, str(TOKENIZER_SCRIPT), str(file)], check=True)
    content = json.loads(file.read_text("utf-8"))
    ids = {*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])}
    return 1 + max(int(item) for item in ids)


def make_checkpoint(out: Path, layout: LayoutName, draft: str, seed: int) -> None:
    """Write the whole checkpoint folder, with a line of progress per shard.

    Rule:   the folder appears complete or not at all; an earlier one of ours is replaced.
    Raises: SystemExit if `out` holds something else.
    """
    if out.exists() and not is_ours(out):
        raise SystemExit(f"{out} exists and is no random checkpoint. Name another folder, or remove it.")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vocab_size = make_tokenizer(partial / "tokenizer.json")
    values = with_layout(config_values(vocab_size, draft), layout)
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 1.0}
    (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    write_checkpoint(partial, values, WriteOptions(seed=seed), show_progress)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def is_ours(folder: Path) -> bool:
    """Say whether a folder is empty or was written by this script."""
    config = folder / "config.json"
    if config.is_file():
        return f'"_name_or_path": "{NAME}"' in config.read_text("utf-8", "replace")
    return folder.is_dir() and not any(folder.iterdir())


def show_progress(done: int, total: int) -> None:
    """Print how much has been written."""
    sys.stdout.write(f"random checkpoint: {done / 1e6:.1f} of {total / 1e6:.1f} MB\n")
    sys.stdout.flush()


def main() -> int:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description="make the small random checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=[item.value for item in LayoutName], default=LayoutName.OFFICIAL.value)
    parser.add_argument("--draft", choices=["mtp", "dspark", "none"], default="mtp")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args()
    make_checkpoint(args.out, LayoutName(args.layout), args.draft, args.seed)
    sys.stdout.write(f"random checkpoint: ready in {args.out} (untrained: its text is noise)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
