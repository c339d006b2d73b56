"""MTP and DSpark written down once more from the specification: float32, one token at a time, no cache, no operators.

Source: shared facts `deepseek_v4.md` 2.1-2.5, 2.9, 2.10; `dspark.md` 3-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, silu, softplus

from dsv4_backend.config import ModelConfig


@dataclass(frozen=True)
class DraftOracle:
    """Weights by official name, all float32."""

    config: ModelConfig
    weights: Mapping[str, Tensor]

    def mtp(self, streams: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Every position of one text at once. Shapes: streams [T, N, d]; ids [T] are the tokens after them.

        Returns the streams of the block [T, N, d] and its logits [T, V].
        """
        w = self.weights
        ahead = linear(self.norm(w["embed.weight"][ids], "mtp.0.enorm.weight"), w["mtp.0.e_proj.weight"])
        mixed = torch.stack(
            [
                linear(self.norm(streams[:, stream], "mtp.0.hnorm.weight"), w["mtp.0.h_proj.weight"]) + ahead
                for stream in range(streams.shape[1])
            ],
            1,
        )
        positions = torch.arange(len(ids))
        window = self.config.window
        visible = [(max(0, position + 1 - window), position + 1) for position in range(len(ids))]

        def attend(x: Tensor) -> Tensor:
            keys = self.keys("mtp.0", x, positions)
            rows = [
                self.attend("mtp.0", x[t], t, keys[low:high]) for t, (low, high) in enumerate(visible)
            ]  # one token at a time
            return torch.stack(rows)

        out = self.layer("mtp.0", mixed, attend)
        return out, self.head(out, "mtp.0.")

    def dspark(self, taps: Tensor, anchor: int) -> tuple[Tensor, Tensor, Tensor]:
        """The block behind a text. Shapes: taps [T, L*d] of all its positions.

        Returns the greedy tokens [B], their logits with the Markov bias [B, V], and the confidences [B].
        """
        w, draft = self.weights, self.config.draft
        features = self.norm(linear(taps, w["mtp.0.main_proj.weight"]), "mtp.0.main_norm.weight")
        end, size, last = len(taps), draft.block_tokens, f"mtp.{draft.num_stages - 1}"
        positions = torch.arange(end, end + size)
        ids = torch.tensor([anchor] + [draft.noise_token_id] * (size - 1))
        streams = w["embed.weight"][ids][:, None].repeat(1, self.config.hc_mult, 1)
        for stage in range(draft.num_stages):
            prefix = f"mtp.{stage}"
            context = self.keys(prefix, features, torch.arange(end))[max(0, end - self.config.window) :]

            def attend(x: Tensor, prefix: str = prefix, context: Tensor = context) -> Tensor:
                keys = torch.cat([context, self.keys(prefix, x, positions)])
                return torch.stack([self.attend(prefix, x[k], end + k, keys) for k in range(size)])

            streams = self.layer(prefix, streams, attend)
        hidden = self.join(streams, f"{last}.hc_head")
        base = linear(self.norm(hidden, f"{last}.norm.weight"), w["head.weight"])
        before, tokens, logits, confidences = anchor, [], [], []
        for k in range(size):
            latent = w[f"{last}.markov_head.markov_w1.weight"][before]
            logits.append(base[k] + linear(latent, w[f"{last}.markov_head.markov_w2.weight"]))
            score = w[f"{last}.confidence_head.proj.weight"] @ torch.cat([hidden[k], latent])
            confidences.append(torch.sigmoid(score[0]))
            before = int(logits[-1].argmax())
            tokens.append(before)
        return torch.tensor(tokens), torch.stack(logits), torch.stack(confidences)

    def layer(self, prefix: str, streams: Tensor, attend: object) -> Tensor:
        """mHC around attention, then around the experts."""
        for name, norm in (("hc_attn", "attn_norm"), ("hc_ffn", "ffn_norm")):
            pre, post, comb = self.maps(f"{prefix}.{name}", streams)
            x = self.norm(torch.einsum("tn,tnd->td", pre, streams), f"{prefix}.{norm}.weight")
            y = attend(x) if name == "hc_attn" else self.experts(f"{prefix}.ffn", x)  # type: ignore[operator]
            streams = post[:, :, None] * y[:, None] + torch.einsum("tjk,tjd->tkd", comb, streams)
        return streams

    def maps(self, prefix: str, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eps = self.config.hc_eps
        z = self.mapped(prefix, streams)
        base, scale = self.weights[f"{prefix}_base"], self.weights[f"{prefix}_scale"]
        pre = torch.sigmoid(z[:, :4] * scale[0] + base[:4]) + eps
        post = 2 * torch.sigmoid(z[:, 4:8] * scale[1] + base[4:8])
        comb = torch.softmax((z[:, 8:] * scale[2] + base[8:]).view(-1, 4, 4), 2) + eps
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        for _ in range(self.config.hc_iterations - 1):
            comb = comb / (comb.sum(2, keepdim=True) + eps)
            comb = comb / (comb.sum(1, keepdim=True) + eps)
        return pre, post, comb

    def mapped(self, prefix: str, streams: Tensor) -> Tensor:
        flat = streams.reshape(len(streams), -1)
        rho = torch.rsqrt(flat.square().mean(1, keepdim=True) + self.config.norm_eps)
        return linear(flat, self.weights[f"{prefix}_fn"]) * rho

    def join(self, streams: Tensor, prefix: str) -> Tensor:
        z = self.mapped(prefix, streams)
        share = torch.sigmoid(z * self.weights[f"{prefix}_scale"] + self.weights[f"{prefix}_base"]) + self.config.hc_eps
        return torch.einsum("tn,tnd->td", share, streams)

    def head(self, streams: Tensor, prefix: str) -> Tensor:
        hidden = self.norm(self.join(streams, f"{prefix}hc_head"), f"{prefix}norm.weight")
        return linear(hidden, self.weights["head.weight"])

    def norm(self, x: Tensor, name: str | None) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return y if name is None else y * self.weights[name]

    def rotate(self, x: Tensor, positions: Tensor, sign: int = 1) -> Tensor:
        """Interleaved pairs of the last channels. Shapes: x [T, (H,) c]."""
        size = self.config.rope_dim
        rates = self.config.draft.layer.rope.theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        turn = torch.polar(torch.ones(()).double(), sign * positions.double()[:, None] * rates)  # [T, R/2]
        turn = turn if x.dim() == 2 else turn[:, None]
        pairs = torch.view_as_complex(x[..., -size:].double().reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.cat([x[..., :-size], torch.view_as_real(pairs * turn).flatten(-2).float()], -1)

    def keys(self, prefix: str, x: Tensor, positions: Tensor) -> Tensor:
        kv = linear(x, self.weights[f"{prefix}.attn.wkv.weight"])
        return self.rotate(self.norm(kv, f"{prefix}.attn.kv_norm.weight"), positions)

    def attend(self, prefix: str, x: Tensor, position: int, keys: Tensor) -> Tensor:
        """One query. Shapes: x [d]; keys [J, c]; returns [d]."""
        w, config, at = self.weights, self.config, torch.tensor([position])
        latent = self.norm(linear(x, w[f"{prefix}.attn.wq_a.weight"]), f"{prefix}.attn.q_norm.weight")
        heads = linear(latent, w[f"{prefix}.attn.wq_b.weight"]).view(1, config.num_heads, config.head_dim)
        query = self.rotate(self.norm(heads, None), at)[0]
        scores = torch.exp(query @ keys.T * config.head_dim**-0.5)  # [H, J]
        shares = scores / (scores.sum(1) + torch.exp(w[f"{prefix}.attn.attn_sink"]))[:, None]
        mixed = self.rotate((shares @ keys)[None], at, -1)[0]  # [H, c]
        groups = mixed.reshape(config.o_groups, -1)
        down = w[f"{prefix}.attn.wo_a.weight"].view(config.o_groups, config.o_lora_rank, -1)
        return linear(torch.einsum("gi,goi->go", groups, down).flatten(), w[f"{prefix}.attn.wo_b.weight"])

    def experts(self, prefix: str, x: Tensor) -> Tensor:
        w, config = self.weights, self.config
        score = softplus(linear(x, w[f"{prefix}.gate.weight"])).sqrt()
        chosen = (score + w[f"{prefix}.gate.bias"]).topk(config.num_active_experts, 1).indices
        share = score.gather(1, chosen)
        share = share / share.sum(1, keepdim=True) * config.routed_scale
        out = self.expert(f"{prefix}.shared_experts", x)
        for t in range(len(x)):
            for expert, weight in zip(chosen[t].tolist(), share[t], strict=True):
                out[t] += weight * self.expert(f"{prefix}.experts.{expert}", x[t])
        return out

    def expert(self, prefix: str, x: Tensor) -> Tensor:
        w, limit = self.weights, self.config.swiglu_limit
        gate = linear(x, w[f"{prefix}.w1.weight"]).clamp(max=limit)
        up = linear(x, w[f"{prefix}.w3.weight"]).clamp(-limit, limit)
        return linear(silu(gate) * up, w[f"{prefix}.w2.weight"])
