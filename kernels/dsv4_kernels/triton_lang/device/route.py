"""Expert routing."""

import triton
import triton.language as tl


@triton.jit
def route_token(logits, bias, fixed_ids, ids, weights, num_experts, scale, K: tl.constexpr, HAS_BIAS: tl.constexpr,
                IS_FIXED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """One token per program: k times the best of what is left, the smaller index first among equals."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    inside = e < num_experts
    x = tl.load(logits + token * num_experts + e, mask=inside, other=0.0).to(tl.float32)
    soft = tl.where(x > 20.0, x, log1p_exp(tl.minimum(x, 20.0)))
    score = tl.sqrt(soft)
    ranked = score
    if HAS_BIAS:
        ranked = ranked + tl.load(bias + e, mask=inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    slot = tl.arange(0, BLOCK_K)
    chosen = tl.full([BLOCK_K], 0, tl.int64)
    weight = tl.zeros([BLOCK_K], tl.float32)
    is_left = inside
    for k in tl.static_range(K):
        if IS_FIXED:
            best = tl.load(fixed_ids + token * K + k)
        else:
            highest = tl.max(tl.where(is_left, ranked, float("-inf")), 0)
            best = tl.min(tl.where(is_left & (ranked >= highest), e, BLOCK_E), 0).to(tl.int64)
            is_left = is_left & (e != best)
        chosen = tl.where(slot == k, best, chosen)
        weight = tl.where(slot == k, tl.sum(tl.where(e == best, score, 0.0), 0), weight)
    weight = weight / (tl.sum(weight, 0) + 1e-20) * scale
    tl.store(ids + token * K + slot, chosen, mask=slot < K)
    tl.store(weights + token * K + slot, weight, mask=slot < K)


@triton.jit
def log1p_exp(x):
    """log(1 + e^x), x <= 20: 2 atanh(e / (2 + e)) as a series where e < 1: hardware logarithms are coarse near 1."""
    e = tl.exp(x)
    r = e / (2.0 + e)
    q = r * r
    series = 1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0))
    series = 2.0 * r * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * series))))
    return tl.where(e < 1.0, series, tl.log(1.0 + e))
