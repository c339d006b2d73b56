"""Every operator: signature, shapes, tie and rounding rules. `OpTable` holds one bound implementation of each.

All tensors are float32 and contiguous unless a line says otherwise (a strided input is copied); row indices are int64,
-1 = none. Letters: T tokens, D width, H heads, N residual streams, E experts, K chosen per token, C compressed entries,
R cache rows, W window slots. Wrong shapes raise ShapeError.

Rule of the `cpu` table: the bits of a token's row depend on that row's inputs only, never on T, on the neighbours, on
the place in the batch, on table widths padded with -1, or on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.rows import RowSpec
from dsv4_kernels.sampling import SampleRows
from dsv4_kernels.tensors import FoldRuns
from dsv4_kernels.trips import Trip


class Linear(Protocol):
    """y = x Wᵀ.

    Rule: `made` names the round trip that x has made before. It changes no value that it stands for: a twin may sum FP4
          weights in integers then, which is faster and closer to the exact sum.
    """

    def __call__(self, x: Tensor, weight: LinearWeight, made: Trip = Trip.NONE) -> Tensor:
        """Shapes: x [T, K]; weight [N, K]; returns [T, N]."""


class GroupedLinear(Protocol):
    """One matrix per group of channels (`wo_a`): rows γN … (γ+1)N of the weight serve group γ."""

    def __call__(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """Shapes: x [T, G, K]; weight [G * N, K]; returns [T, G, N]."""


class RmsNorm(Protocol):
    """w · x · rsqrt(mean(x²) + eps) over the last dimension; without a weight, the plain unit norm."""

    def __call__(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Shapes: x [..., D]; weight [D] or None; returns as x."""


class RopeRotate(Protocol):
    """Rotate the interleaved pairs (2i, 2i+1) of each token by its angles; `inverse` by the negative angles."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
        """Shapes: x [T, R] or [T, H, R]; cos, sin [T, R / 2]; returns as x."""


class Fp8RoundTrip(Protocol):
    """Round to e4m3 and back, one power-of-two scale per group of the last dimension.

    Rule: scale = 2^ceil(log2(max(amax, 1e-4) / 448)) on the IEEE bits (powers of two do not round up), then clamp to
          ±448 and nearest even. The last group may be short.
    """

    def __call__(self, x: Tensor, group: int) -> Tensor:
        """Shapes: x [..., D]; returns as x."""


class Int8RoundTrip(Protocol):
    """Round to an integer from -127 to 127 and back, one scale per group of the last dimension.

    Rule: scale = max(amax, 127 * 2^-126) / 127, rounded up to 17 significant bits; then x / scale to the nearest
          integer, ties to even. So integer times scale is exact in float32, and a second trip changes nothing. The last
          group may be short.
    """

    def __call__(self, x: Tensor, group: int) -> Tensor:
        """Shapes: x [..., D]; returns as x."""


class Fp4RoundTrip(Protocol):
    """Round to e2m1 {0, .5, 1, 1.5, 2, 3, 4, 6} and back, one power-of-two scale per group of the last dimension.

    Rule: scale = 2^ceil(log2(max(amax, 6 * 2^-126) / 6)) on the IEEE bits, nearest even, saturating.
    """

    def __call__(self, x: Tensor, group: int = 32) -> Tensor:
        """Shapes: x [..., D]; returns as x."""


class Hadamard(Protocol):
    """Natural-order Sylvester transform of the last dimension, times D^-1/2 (orthogonal)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x [..., D], D a power of two; returns as x."""


class HyperMaps(Protocol):
    """The three mHC maps of a sublayer, from the residual streams.

    Rule:   z = (fn · vec(streams)) · rsqrt(mean(vec²) + norm_eps), stream-major; pre = σ(z·scale₀ + base) + hc_eps;
            post = 2σ(z·scale₁ + base); comb = Sinkhorn of z·scale₂ + base [N, N] row-major: softmax of rows + hc_eps,
            columns normalised, then (rows, columns) iterations - 1 times, each dividing by its sum + hc_eps.
    Source: V4 report, mHC; the reference implementation's order of steps.
    """

    def __call__(
        self,
        streams: Tensor,
        fn: Tensor,
        base: Tensor,
        scale: Tensor,
        norm_eps: float,
        hc_eps: float,
        iterations: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: streams [T, N, D]; fn [(2 + N)N, N * D]; base [(2 + N)N]; scale [3].

        Returns pre [T, N], post [T, N], comb [T, N, N].
        """


class HyperCollapse(Protocol):
    """u = Σ_n pre_n · streams_n, in the order of n."""

    def __call__(self, streams: Tensor, pre: Tensor) -> Tensor:
        """Shapes: streams [T, N, D]; pre [T, N]; returns [T, D]."""


class HyperMix(Protocol):
    """streams'_k = post_k · y + Σ_j comb_jk · streams_j: the sum runs over the first index of comb."""

    def __call__(self, streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """Shapes: streams [T, N, D]; y [T, D]; post [T, N]; comb [T, N, N]; returns [T, N, D]."""


class HyperHead(Protocol):
    """Head mixing: h = Σ_n a_n · streams_n with a = σ(z·scale + base) + hc_eps and z as in `HyperMaps`."""

    def __call__(
        self, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, hc_eps: float
    ) -> Tensor:
        """Shapes: streams [T, N, D]; fn [N, N * D]; base [N]; scale [1]; returns [T, D]."""


class Route(Protocol):
    """Choose k experts per token and their weights.

    Rule: s = sqrt(softplus(logits)), softplus linear above 20. Without fixed_ids the k largest of s + bias are chosen,
          best first, ties take the smaller index; bias never enters the weights. weights = s / (Σ s + 1e-20) · scale.
    """

    def __call__(
        self, logits: Tensor, bias: Tensor | None, fixed_ids: Tensor | None, k: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Shapes: logits [T, E]; bias [E]; fixed_ids int64 [T, k]; returns ids int64 [T, k], weights [T, k]."""


class Moe(Protocol):
    """Routed experts: Σ_k W2(w_k · f_k) with f = silu(min(W1 x, limit)) · clip(W3 x, ±limit).

    Rule: the weight multiplies before W2; w · f makes the round trip `round_trip` before it enters W2, and x has made
          the same one. The sum runs over the slots in their order; a slot with id -1 adds nothing.
    """

    def __call__(
        self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, limit: float, round_trip: Trip
    ) -> Tensor:
        """Shapes: x [T, D]; ids int64 [T, K]; weights [T, K]; returns [T, D]."""


class GatedMlp(Protocol):
    """One expert with weight 1 (the shared expert), same rule as `Moe`, but x has made the round trip `made`."""

    def __call__(
        self,
        x: Tensor,
        w1: LinearWeight,
        w3: LinearWeight,
        w2: LinearWeight,
        limit: float,
        round_trip: Trip,
        *,
        made: Trip = Trip.NONE,
    ) -> Tensor:
        """Shapes: x [T, D]; w1, w3 [I, D]; w2 [D, I]; returns [T, D]."""


class CompressPool(Protocol):
    """Per channel: softmax of the gates over the slots, then the weighted sum of the values.

    Rule: a gate may be -inf (that slot weighs 0); at least one slot of each channel must be finite.
    """

    def __call__(self, values: Tensor, gates: Tensor) -> Tensor:
        """Shapes: values, gates [B, S, D]; returns [B, D]."""


class CompressFold(Protocol):
    """`CompressPool` row by row: a state per channel holds maximum, denominator and weighted sum of the rows so far.

    Rule: folding (v, g) into (m, d, s) gives m' = max(m, g), d' = d·e^(m - m') + e^(g - m') and s' alike with v; an
          empty state is (-inf, 0, 0). An entry is s / d. Runs read what earlier runs of the call have stored. The bits
          depend on the rows and their order, not on where they are cut into calls.
    """

    def __call__(self, values: Tensor, gates: Tensor, states: Tensor, runs: FoldRuns) -> Tensor:
        """Shapes: values, gates [N, D]; states [slots, 3, D], written in place; returns the entries [B, D]."""


class PackRows(Protocol):
    """Store values as cache rows.

    Rule: bf16 to nearest even. PACKED rounds the first channels as `Fp8RoundTrip` in groups of 64, FP4 all as
          `Fp4RoundTrip`; values that made that trip before lose nothing. FP8 rounds all as
          `Fp8RoundTrip` in one group.
    """

    def __call__(self, values: Tensor, spec: RowSpec) -> CacheRows:
        """Shapes: values [N, width]."""


class IndexSelect(Protocol):
    """The compressed entries that each token may attend to: of one sequence, or each token of its own pages.

    Rule: score of entry i = Σ_h w_h · relu(q_h · key_i), h in order. Of the entries 0 … num_visible-1 the k best are
          kept, ties take the smaller entry; they are returned as entry numbers in ascending order, then -1. Where
          num_visible <= k, all visible entries are returned without scoring.
    """

    def __call__(
        self,
        query: Tensor,
        head_weights: Tensor,
        cache: CacheRows,
        rows: Tensor,
        num_visible: Tensor,
        k: int,
        page_rows: int = 1,
    ) -> Tensor:
        """Shapes: query [T, H, D]; head_weights [T, H]; cache of width D; rows int64 [C], the cache row of each entry,
        or [T, C / page_rows], for each token the pages whose rows page * page_rows ... are its entries;
        num_visible int64 [T], each <= C; returns int64 [T, k].
        """


class SparseAttention(Protocol):
    """One softmax over window rows and entry rows together, K and V being the same vector.

    Rule: score = scale · q_h · kv_j over the rows that are not -1, window first, in the order given;
          out = Σ e^(s_j - m) kv_j / (Σ e^(s_j - m) + e^(sink_h - m)), m the maximum of the scores and the sink.
          The sink has no value; a token without rows gives zeros.
    """

    def __call__(
        self, query: Tensor, window: WindowRows, entries: EntryRows | None, sink: Tensor, scale: float
    ) -> Tensor:
        """Shapes: query [T, H, D]; all rows of width D; sink [H]; returns [T, H, D]."""


class SampleTokens(Protocol):
    """One token for each row of scores.

    Rule: temperature 0, or an infinite best score, takes the best one, ties the smaller id. Else the weights are
          e^((score - best) / temperature) in float64, 0 below e^NEGLIGIBLE. top_k keeps exactly k; top_p keeps the
          fewest best tokens whose share of what top_k left reaches p; min_p keeps what is at least that fraction of the
          best. Then `number` picks among the sums of the weights in the order of the ids.
          A token that `rows.allowed` leaves out counts as a score of minus infinity.
          -1 where every score is minus infinity.
    """

    def __call__(self, scores: Tensor, rows: SampleRows) -> Tensor:
        """Shapes: scores [S, V], without NaN; returns int64 [S]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTable:
    """One implementation of every operator, bound once at process start by `dispatch.bind`."""

    linear: Linear
    grouped_linear: GroupedLinear
    rms_norm: RmsNorm
    rope_rotate: RopeRotate
    fp8_round_trip: Fp8RoundTrip
    int8_round_trip: Int8RoundTrip
    fp4_round_trip: Fp4RoundTrip
    hadamard: Hadamard
    hyper_maps: HyperMaps
    hyper_collapse: HyperCollapse
    hyper_mix: HyperMix
    hyper_head: HyperHead
    route: Route
    moe: Moe
    gated_mlp: GatedMlp
    compress_pool: CompressPool
    compress_fold: CompressFold
    pack_rows: PackRows
    index_select: IndexSelect
    sparse_attention: SparseAttention
    sample_tokens: SampleTokens
