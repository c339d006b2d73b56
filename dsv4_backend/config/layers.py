"""The roles of the layers in a config.json: what each attends to, how it routes, and how it rotates positions.

Source: shared facts `deepseek_v4.md` section 1; the official spellings and those of transformers are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsv4_backend.config.fields import Fields
from dsv4_backend.config.model import PAGE_TOKENS, LayerKind, LayerSpec, RopeSpec, YarnSpec

_KINDS = {0: LayerKind.WINDOW, 4: LayerKind.CSA, 128: LayerKind.HCA}
_RATIOS_OF_TYPES = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def read_layers(fields: Fields) -> tuple[tuple[LayerSpec, ...], LayerSpec]:
    """Return the backbone's layers, and what a stage of a draft model is; what is wrong is added to the problems."""
    num_layers = fields.integer("num_hidden_layers", "n_layers")
    num_hash = fields.integer("num_hash_layers", "n_hash_layers", default=_num_hash(fields), minimum=0)
    plain, compressed = _ropes(fields)
    draft = LayerSpec(kind=LayerKind.WINDOW, ratio=0, is_hash_routed=False, rope=plain)
    layers = tuple(
        LayerSpec(
            kind=kind,
            ratio=ratio,
            is_hash_routed=index < num_hash,
            rope=plain if kind is LayerKind.WINDOW else compressed,
        )
        for index, (kind, ratio) in enumerate(_ratios(fields, num_layers))
    )
    return layers, draft


def _num_hash(fields: Fields) -> int:
    types = fields.names("mlp_layer_types")
    if types is None:
        return 3
    num_hash = sum(item == "hash_moe" for item in types)
    if list(types) != ["hash_moe"] * num_hash + ["moe"] * (len(types) - num_hash):
        fields.problems.append("mlp_layer_types must be 'hash_moe' for the first layers, then 'moe'.")
    return num_hash


def _ratios(fields: Fields, num_layers: int) -> list[tuple[LayerKind, int]]:
    """Kind and ratio of each backbone layer; entries beyond them belong to draft stages."""
    nominal = _nominal_ratios(fields)
    real = _compress_rates(fields)
    if nominal is None:
        fields.problems.append("compress_ratios is missing (one ratio per layer: 0, 4 or 128).")
        return []
    if len(nominal) < num_layers:
        fields.problems.append(f"compress_ratios has {len(nominal)} entries but num_hidden_layers is {num_layers}.")
    unknown = sorted(set(nominal) - set(_KINDS))
    if unknown:
        fields.problems.append(f"compress_ratios holds {unknown}; this runtime implements 0, 4 and 128.")
    return [(_KINDS.get(item, LayerKind.WINDOW), real.get(item, 0)) for item in nominal[:num_layers]]


def _nominal_ratios(fields: Fields) -> tuple[int, ...] | None:
    """One of 0, 4, 128 per layer, which names its kind: from `layer_types`, or else from `compress_ratios`."""
    types = fields.names("layer_types")
    ratios = fields.integers("compress_ratios")
    if types is None:
        return ratios
    unknown = sorted(set(types) - set(_RATIOS_OF_TYPES))
    if unknown:
        fields.problems.append(f"layer_types holds {unknown}; this runtime implements {sorted(_RATIOS_OF_TYPES)}.")
    return tuple(_RATIOS_OF_TYPES.get(item, 0) for item in types)


def _compress_rates(fields: Fields) -> dict[int, int]:
    """Tokens per entry of each kind, keyed by its nominal ratio."""
    section = Fields(fields.section("compress_rates"))
    real = {0: 0}
    for name, nominal in _RATIOS_OF_TYPES.items():
        if nominal:
            real[nominal] = section.integer(name, default=nominal)
            if PAGE_TOKENS % real[nominal]:
                section.problems.append(f"{name} is {real[nominal]} but must divide {PAGE_TOKENS}.")
    section.refuse_unknown(())
    fields.adopt("compress_rates", section)
    return real


def _ropes(fields: Fields) -> tuple[RopeSpec, RopeSpec]:
    """RoPE of window-only layers, and of compressed layers."""
    theta = fields.real("rope_theta", default=10_000.0, minimum=1.0)
    compress_theta = fields.real("compress_rope_theta", default=160_000.0, minimum=1.0)
    nested = fields.section("rope_parameters")
    scaling = fields.section("rope_scaling") or _flat_scaling(fields)
    if "main" in nested or "compress" in nested:  # spelling of transformers
        families = Fields(nested)
        main, compress = _rope(families, "main", theta), _rope(families, "compress", compress_theta)
        families.refuse_unknown(("rope_theta", "rope_type", "partial_rotary_factor"))
        fields.adopt("rope_parameters", families)
        if main.yarn is not None:
            fields.problems.append("rope_parameters.main is 'yarn'; window-only layers are rotated without it.")
        return main, compress
    holder = Fields({"rope_scaling": dict(scaling or nested)})
    compress = _rope(holder, "rope_scaling", compress_theta, is_theta_ignored=True)
    fields.problems += holder.problems
    return RopeSpec(theta=theta), compress


def _flat_scaling(fields: Fields) -> Mapping[str, object]:
    """YaRN as inference/config.json spells it: keys of the top level."""
    values = {
        "factor": fields.get("rope_factor"),
        "original_max_position_embeddings": fields.get("original_seq_len"),
        "beta_fast": fields.get("beta_fast"),
        "beta_slow": fields.get("beta_slow"),
    }
    return {"rope_type": "yarn"} | values if values["factor"] is not None else {}


def _rope(parent: Fields, name: str, theta: float, is_theta_ignored: bool = False) -> RopeSpec:
    """One family of RoPE from the section `name`. No mscale exists in V4, so only a factor of 1 is accepted."""
    section = Fields(parent.section(name))
    kind = section.text("rope_type") or section.text("type", default="default")
    section.get("type")
    if kind not in ("default", "yarn"):
        section.problems.append(f"rope_type is {kind!r}; this runtime implements 'default' and 'yarn'.")
    section.require("attention_factor", (1, None))
    section.require("truncate", (True,))
    own_theta = section.real("rope_theta", default=theta, minimum=1.0)
    yarn = _yarn(section) if kind == "yarn" else None
    section.refuse_unknown(("partial_rotary_factor",))
    parent.adopt(name, section)
    return RopeSpec(theta=theta if is_theta_ignored else own_theta, yarn=yarn)


def _yarn(section: Fields) -> YarnSpec:
    return YarnSpec(
        factor=section.real("factor", default=16.0, minimum=1.0),
        original_tokens=section.integer("original_max_position_embeddings", default=65_536),
        beta_fast=section.real("beta_fast", default=32.0),
        beta_slow=section.real("beta_slow", default=1.0),
    )
