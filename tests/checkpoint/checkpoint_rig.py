"""What the checkpoint tests share: the released configs, a tiny one, and a plain safetensors reader and writer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from dsv4_backend.checkpoint.header import DTYPE_BYTES
from dsv4_backend.checkpoint.names import TensorSpec

QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
COMMON: dict[str, object] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536,
                     "beta_fast": 32, "beta_slow": 1},
    "max_position_embeddings": 1048576,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "num_hash_layers": 3,
    "swiglu_limit": 10.0,
    "num_nextn_predict_layers": 1,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "quantization_config": QUANTIZATION,
}  # fmt: skip
FLASH = COMMON | {
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4] + [0],
    "index_topk": 512,
    "n_routed_experts": 256,
    "moe_intermediate_size": 2048,
    "routed_scaling_factor": 1.5,
}
PRO = COMMON | {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "compress_ratios": [128, 128] + [4, 128] * 29 + [4] + [0],
    "index_topk": 1024,
    "n_routed_experts": 384,
    "moe_intermediate_size": 3072,
    "routed_scaling_factor": 2.5,
}
_DSPARK = {"dspark_block_size": 5, "dspark_noise_token_id": 128799}
FLASH_0731 = FLASH | _DSPARK | {
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4] + [0] * 3,
    "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256,
}  # fmt: skip
PRO_0813 = PRO | _DSPARK | {
    "compress_ratios": [128, 128] + [4, 128] * 29 + [4] + [0] * 3,
    "dspark_target_layer_ids": [58, 59, 60],
    "dspark_markov_rank": 512,
}  # fmt: skip

TINY = COMMON | {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 32,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 8,
    "compress_ratios": [0, 4, 128, 4, 0],
    "num_hash_layers": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "vocab_size": 64,
}
TINY_DSPARK = TINY | {
    "compress_ratios": [0, 4, 128, 4, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 2,
    "dspark_target_layer_ids": [2, 3],
    "dspark_markov_rank": 8,
}

Header = dict[str, dict[str, object]]


def write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values), "utf-8")


def read_shard(file: Path) -> tuple[Header, bytes]:
    """The header (without __metadata__) and the data of one file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def write_shard(file: Path, header: Mapping[str, object], data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_header(file: Path, name: str, **changes: object) -> None:
    """Change one tensor's entry and leave the data alone."""
    header, data = read_shard(file)
    header[name].update(changes)
    write_shard(file, header, data)


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    return folder / index["weight_map"][name]


def remove_tensor(folder: Path, name: str) -> None:
    """Take one tensor out of its file and the index, closing the gap."""
    file = shard_of(folder, name)
    header, data = read_shard(file)
    start, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        entry["data_offsets"] = [at - (end - start) if at >= end else at for at in entry["data_offsets"]]
    write_shard(file, header, data[:start] + data[end:])
    edit_index(folder, {name: None})


def replace_tensor(folder: Path, name: str, dtype: str, shape: list[int], data: bytes) -> None:
    remove_tensor(folder, name)
    add_tensor(folder, name, dtype, shape, data)


def add_tensor(folder: Path, name: str, dtype: str, shape: list[int], content: bytes | None = None) -> None:
    """Append a tensor (of zeros) to the first file and to the index."""
    file = sorted(folder.glob("*.safetensors"))[0]
    header, data = read_shard(file)
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
    write_shard(file, header, data + (bytes(size) if content is None else content))
    edit_index(folder, {name: file.name})


def merge_shards(folder: Path, out: Path) -> None:
    """Write the same checkpoint as one file without index, its data starting at an odd byte."""
    merged: Header = {}
    joined = b""
    for file in sorted(folder.glob("*.safetensors")):
        header, data = read_shard(file)
        for name, entry in header.items():
            merged[name] = entry | {"data_offsets": [at + len(joined) for at in entry["data_offsets"]]}
        joined += data
    text = json.dumps(merged).encode()
    text += b" " * (1 - len(text) % 2)
    (out / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + joined)
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())


def edit_index(folder: Path, changes: Mapping[str, str | None]) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text("utf-8"))
    for name, value in changes.items():
        if value is None:
            index["weight_map"].pop(name, None)
        else:
            index["weight_map"][name] = value
    write_json(file, index)


def write_synthetic_index(
    folder: Path, values: Mapping[str, object], specs: Mapping[str, TensorSpec], num: int
) -> None:
    """config.json and an index of `num` shards for a full-size model, without any shard."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", values)
    write_json(folder / "model.safetensors.index.json", {"weight_map": _weight_map(specs, num)})


def write_sparse_shards(folder: Path, specs: Mapping[str, TensorSpec], num: int) -> None:
    """Shards with true headers and true sizes whose data is a hole in the file: no disk is used."""
    files: dict[str, Header] = {}
    ends: dict[str, int] = {}
    for name, file in _weight_map(specs, num).items():
        spec, start = specs[name], ends.get(file, 0)
        ends[file] = start + math.prod(spec.shape) * DTYPE_BYTES[spec.dtypes[0]]
        entry = {"dtype": spec.dtypes[0], "shape": list(spec.shape), "data_offsets": [start, ends[file]]}
        files.setdefault(file, {})[name] = entry
    for file, header in files.items():
        write_shard(folder / file, header, b"")
        with (folder / file).open("r+b") as stream:
            stream.truncate(stream.seek(0, 2) + ends[file])


def _weight_map(specs: Mapping[str, TensorSpec], num: int) -> dict[str, str]:
    per_file = -(-len(specs) // num)
    return {name: f"model-{at // per_file + 1:05d}-of-{num:05d}.safetensors" for at, name in enumerate(specs)}
