// The row-wise operators of `ops`, forward and backward, one thread: processes share the cores by splitting batches.
// Shapes are those of `ops`; every pointer is a contiguous float32 array. Source of the formulas: ops.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int N = 4;        // residual streams
constexpr int MAPS = 24;    // pre 4, post 4, comb 16
constexpr int LANES = 16;   // tokens that one Sinkhorn block treats together
constexpr int MAX_ITERATIONS = 32;

// e^x by powers of two and a polynomial of degree 6; relative error below 2e-7; -inf and very small x give 0.
inline float fast_exp(float x) {
    float clamped = std::min(std::max(x, -104.0f), 88.0f);
    float k = std::nearbyint(clamped * 1.44269504f);
    float r = std::fma(k, -0.693359375f, clamped);
    r = std::fma(k, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = std::fma(p, r, 1.3981999507e-3f);
    p = std::fma(p, r, 8.3334519073e-3f);
    p = std::fma(p, r, 4.1665795894e-2f);
    p = std::fma(p, r, 1.6666665459e-1f);
    p = std::fma(p, r, 5.0000001201e-1f);
    p = std::fma(p * r, r, r) + 1.0f;
    int32_t bits = (std::max(static_cast<int32_t>(k), -126) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// One block of Sinkhorn: matrices [step][4j + k][lane] after every normalisation, and the sums divided by.
struct Sinkhorn {
    float after[2 * MAX_ITERATIONS][16][LANES];
    float sums[2 * MAX_ITERATIONS][4][LANES];

    void divide(int step, bool by_rows, float eps) {
        const auto& in = after[step - 1];
        auto& out = after[step];
        for (int a = 0; a < 4; ++a)
            for (int l = 0; l < LANES; ++l) {
                float sum = eps;
                for (int b = 0; b < 4; ++b) sum += in[by_rows ? 4 * a + b : 4 * b + a][l];
                sums[step][a][l] = sum;
                for (int b = 0; b < 4; ++b) {
                    int at = by_rows ? 4 * a + b : 4 * b + a;
                    out[at][l] = in[at][l] / sum;
                }
            }
    }

    void forward(const float (*logits)[LANES], float eps, int iterations) {
        auto& first = after[0];
        for (int j = 0; j < 4; ++j)
            for (int l = 0; l < LANES; ++l) {
                float top = logits[4 * j][l];
                for (int k = 1; k < 4; ++k) top = std::max(top, logits[4 * j + k][l]);
                float sum = 0;
                for (int k = 0; k < 4; ++k) sum += first[4 * j + k][l] = fast_exp(logits[4 * j + k][l] - top);
                for (int k = 0; k < 4; ++k) first[4 * j + k][l] = first[4 * j + k][l] / sum + eps;
            }
        divide(1, false, eps);
        for (int i = 1; i < iterations; ++i) {
            divide(2 * i, true, eps);
            divide(2 * i + 1, false, eps);
        }
    }

    // gradient of the result in, gradient of the logits out
    void backward(float (*grad)[LANES], float eps, int iterations) {
        for (int step = 2 * iterations - 1; step >= 1; --step) {
            bool by_rows = step % 2 == 0;
            for (int a = 0; a < 4; ++a)
                for (int l = 0; l < LANES; ++l) {
                    float dot = 0;
                    for (int b = 0; b < 4; ++b) {
                        int at = by_rows ? 4 * a + b : 4 * b + a;
                        dot += grad[at][l] * after[step][at][l];
                    }
                    for (int b = 0; b < 4; ++b) {
                        int at = by_rows ? 4 * a + b : 4 * b + a;
                        grad[at][l] = (grad[at][l] - dot) / sums[step][a][l];
                    }
                }
        }
        for (int j = 0; j < 4; ++j)
            for (int l = 0; l < LANES; ++l) {
                float dot = 0;
                for (int k = 0; k < 4; ++k) dot += grad[4 * j + k][l] * (after[0][4 * j + k][l] - eps);
                for (int k = 0; k < 4; ++k) {
                    int at = 4 * j + k;
                    grad[at][l] = (grad[at][l] - dot) * (after[0][at][l] - eps);
                }
            }
    }
};

// logits[m][lane] = z · scale of its group + base; lanes beyond the end repeat the last token
void load_logits(float (*logits)[LANES], const float* z, const float* base, const float* scale, int64_t first,
                 int64_t tokens) {
    for (int l = 0; l < LANES; ++l) {
        const float* row = z + std::min(first + l, tokens - 1) * MAPS;
        for (int m = 0; m < MAPS; ++m) logits[m][l] = row[m] * scale[m < 4 ? 0 : m < 8 ? 1 : 2] + base[m];
    }
}

}  // namespace

API void nano_hyper_maps(const float* z, const float* base, const float* scale, float* pre, float* post, float* comb,
                         int64_t tokens, float eps, int64_t iterations) {
    static thread_local Sinkhorn work;
    float logits[MAPS][LANES];
    for (int64_t first = 0; first < tokens; first += LANES) {
        load_logits(logits, z, base, scale, first, tokens);
        work.forward(logits + 8, eps, static_cast<int>(iterations));
        const auto& last = work.after[2 * iterations - 1];
        for (int l = 0; l < std::min<int64_t>(LANES, tokens - first); ++l) {
            int64_t t = first + l;
            for (int n = 0; n < N; ++n) pre[t * N + n] = sigmoid(logits[n][l]) + eps;
            for (int n = 0; n < N; ++n) post[t * N + n] = 2 * sigmoid(logits[4 + n][l]);
            for (int m = 0; m < 16; ++m) comb[t * 16 + m] = last[m][l];
        }
    }
}

// d_logits [T, 24] is the gradient of z · scale + base
API void nano_hyper_maps_backward(const float* z, const float* base, const float* scale, const float* d_pre,
                                  const float* d_post, const float* d_comb, float* d_logits, int64_t tokens, float eps,
                                  int64_t iterations) {
    static thread_local Sinkhorn work;
    float logits[MAPS][LANES], grad[16][LANES];
    for (int64_t first = 0; first < tokens; first += LANES) {
        load_logits(logits, z, base, scale, first, tokens);
        work.forward(logits + 8, eps, static_cast<int>(iterations));
        for (int l = 0; l < LANES; ++l)
            for (int m = 0; m < 16; ++m) grad[m][l] = d_comb[std::min(first + l, tokens - 1) * 16 + m];
        work.backward(grad, eps, static_cast<int>(iterations));
        for (int l = 0; l < std::min<int64_t>(LANES, tokens - first); ++l) {
            int64_t t = first + l;
            float* out = d_logits + t * MAPS;
            for (int n = 0; n < N; ++n) {
                float a = sigmoid(logits[n][l]), b = sigmoid(logits[4 + n][l]);
                out[n] = d_pre[t * N + n] * a * (1 - a);
                out[4 + n] = 2 * d_post[t * N + n] * b * (1 - b);
            }
            for (int m = 0; m < 16; ++m) out[8 + m] = grad[m][l];
        }
    }
}

// mean square of all streams of a token
API void nano_mean_square(const float* x, float* out, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float* row = x + t * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; ++d) sum += row[d] * row[d];
        out[t] = sum / static_cast<float>(width);
    }
}

API void nano_collapse(const float* x, const float* pre, float* u, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float *row = x + t * N * width, *a = pre + t * N;
        float* out = u + t * width;
#pragma omp simd
        for (int64_t d = 0; d < width; ++d)
            out[d] = a[0] * row[d] + a[1] * row[width + d] + a[2] * row[2 * width + d] + a[3] * row[3 * width + d];
    }
}

// d_pre_n = X_n · du
API void nano_collapse_dots(const float* x, const float* du, float* d_pre, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; ++t)
        for (int n = 0; n < N; ++n) {
            const float *row = x + (t * N + n) * width, *g = du + t * width;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < width; ++d) sum += row[d] * g[d];
            d_pre[t * N + n] = sum;
        }
}

// dx += pre_n du + factor x
API void nano_collapse_add(const float* x, const float* pre, const float* du, const float* factor, float* dx,
                           int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; ++t)
        for (int n = 0; n < N; ++n) {
            int64_t at = (t * N + n) * width;
            const float *row = x + at, *g = du + t * width;
            float a = pre[t * N + n], f = factor[t];
            float* out = dx + at;
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) out[d] += a * g[d] + f * row[d];
        }
}

API void nano_mix(const float* x, const float* y, const float* post, const float* comb, float* out, int64_t tokens,
                  int64_t width) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float *row = x + t * N * width, *g = y + t * width;
        for (int k = 0; k < N; ++k) {
            const float* c = comb + t * 16 + k;
            float p = post[t * N + k], c0 = c[0], c1 = c[4], c2 = c[8], c3 = c[12];
            float* to = out + (t * N + k) * width;
#pragma omp simd
            for (int64_t d = 0; d < width; ++d)
                to[d] = p * g[d] + c0 * row[d] + c1 * row[width + d] + c2 * row[2 * width + d] + c3 * row[3 * width + d];
        }
    }
}

API void nano_mix_backward(const float* x, const float* y, const float* post, const float* comb, const float* d_out,
                           float* dx, float* dy, float* d_post, float* d_comb, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float *row = x + t * N * width, *g = d_out + t * N * width, *value = y + t * width;
        const float *p = post + t * N, *c = comb + t * 16;
        float* to = dy + t * width;
#pragma omp simd
        for (int64_t d = 0; d < width; ++d)
            to[d] = p[0] * g[d] + p[1] * g[width + d] + p[2] * g[2 * width + d] + p[3] * g[3 * width + d];
        for (int j = 0; j < N; ++j) {
            float c0 = c[4 * j], c1 = c[4 * j + 1], c2 = c[4 * j + 2], c3 = c[4 * j + 3];
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            const float* in = row + j * width;
            float* out = dx + (t * N + j) * width;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (int64_t d = 0; d < width; ++d) {
                float g0 = g[d], g1 = g[width + d], g2 = g[2 * width + d], g3 = g[3 * width + d];
                out[d] = c0 * g0 + c1 * g1 + c2 * g2 + c3 * g3;
                s0 += in[d] * g0, s1 += in[d] * g1, s2 += in[d] * g2, s3 += in[d] * g3;
            }
            float* dots = d_comb + t * 16 + 4 * j;
            dots[0] = s0, dots[1] = s1, dots[2] = s2, dots[3] = s3;
            float sum = 0;
            const float* gj = g + j * width;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < width; ++d) sum += value[d] * gj[d];
            d_post[t * N + j] = sum;
        }
    }
}

// y = rotate(w · x · rsqrt(mean(x²) + eps)); no norm where inverse_rms is null; `half` pairs turn, row / heads is the token
API void nano_norm_rotate(const float* x, const float* weight, const float* cosine, const float* sine, float* y,
                          float* inverse_rms, int64_t rows, int64_t width, int64_t heads, int64_t half, float eps) {
    int64_t flat = width - 2 * half;
    for (int64_t r = 0; r < rows; ++r) {
        const float* in = x + r * width;
        float* out = y + r * width;
        float factor = 1;
        if (inverse_rms) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < width; ++d) sum += in[d] * in[d];
            factor = inverse_rms[r] = 1 / std::sqrt(sum / static_cast<float>(width) + eps);
        }
        if (weight) {
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) out[d] = in[d] * factor * weight[d];
        } else {
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) out[d] = in[d] * factor;
        }
        const float *c = cosine + r / heads * half, *s = sine + r / heads * half;
        float* pairs = out + flat;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float even = pairs[2 * i], odd = pairs[2 * i + 1];
            pairs[2 * i] = even * c[i] - odd * s[i];
            pairs[2 * i + 1] = even * s[i] + odd * c[i];
        }
    }
}

// dx from dy; d_weight (if any) is added to; `room` holds one row
API void nano_norm_rotate_backward(const float* x, const float* weight, const float* cosine, const float* sine,
                                   const float* inverse_rms, const float* dy, float* dx, float* d_weight, float* room,
                                   int64_t rows, int64_t width, int64_t heads, int64_t half) {
    int64_t flat = width - 2 * half;
    for (int64_t r = 0; r < rows; ++r) {
        const float *in = x + r * width, *g = dy + r * width;
        const float *c = cosine + r / heads * half, *s = sine + r / heads * half;
        std::memcpy(room, g, static_cast<size_t>(flat) * sizeof(float));
        float* pairs = room + flat;
        const float* turned = g + flat;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float even = turned[2 * i], odd = turned[2 * i + 1];
            pairs[2 * i] = even * c[i] + odd * s[i];
            pairs[2 * i + 1] = odd * c[i] - even * s[i];
        }
        float* out = dx + r * width;
        if (!inverse_rms) {
            std::memcpy(out, room, static_cast<size_t>(width) * sizeof(float));
            continue;
        }
        float factor = inverse_rms[r], dot = 0;
        if (weight) {
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) {
                d_weight[d] += room[d] * in[d] * factor;
                room[d] *= weight[d];
            }
        }
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < width; ++d) dot += room[d] * in[d];
        float shift = dot * factor * factor * factor / static_cast<float>(width);
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) out[d] = room[d] * factor - in[d] * shift;
    }
}

API void nano_swiglu(const float* gate_up, const float* shares, float* out, int64_t rows, int64_t width, float limit) {
    for (int64_t r = 0; r < rows; ++r) {
        const float *a = gate_up + r * 2 * width, *b = a + width;
        float share = shares ? shares[r] : 1.0f;
        float* to = out + r * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            float gate = std::min(a[i], limit), up = std::min(std::max(b[i], -limit), limit);
            to[i] = gate * sigmoid(gate) * up * share;
        }
    }
}

// also gives the forward result again, which the caller needs for the weight gradient
API void nano_swiglu_backward(const float* gate_up, const float* shares, const float* d_out, float* out,
                              float* d_gate_up, float* d_shares, int64_t rows, int64_t width, float limit) {
    for (int64_t r = 0; r < rows; ++r) {
        const float *a = gate_up + r * 2 * width, *b = a + width, *g = d_out + r * width;
        float share = shares ? shares[r] : 1.0f, dot = 0;
        float *da = d_gate_up + r * 2 * width, *db = da + width, *to = out + r * width;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < width; ++i) {
            float gate = std::min(a[i], limit), up = std::min(std::max(b[i], -limit), limit);
            float s = sigmoid(gate), silu = gate * s;
            dot += g[i] * silu * up;
            to[i] = silu * up * share;
            da[i] = a[i] <= limit ? g[i] * share * up * (s + silu * (1 - s)) : 0.0f;
            db[i] = b[i] >= -limit && b[i] <= limit ? g[i] * share * silu : 0.0f;
        }
        if (d_shares) d_shares[r] = dot;
    }
}

// scores [C · H, K] become weights in place; normaliser [C, H]
API void nano_masked_softmax(float* scores, const float* mask, const float* sink, float* normaliser, int64_t queries,
                             int64_t heads, int64_t keys) {
    for (int64_t q = 0; q < queries; ++q)
        for (int64_t h = 0; h < heads; ++h) {
            float* row = scores + (q * heads + h) * keys;
            const float* hidden = mask + q * keys;
            float top = sink[h], sum = 0;
#pragma omp simd reduction(max : top)
            for (int64_t k = 0; k < keys; ++k) {
                row[k] += hidden[k];
                top = std::max(top, row[k]);
            }
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < keys; ++k) sum += row[k] = fast_exp(row[k] - top);
            sum += fast_exp(sink[h] - top);
            float factor = 1 / sum;
#pragma omp simd
            for (int64_t k = 0; k < keys; ++k) row[k] *= factor;
            normaliser[q * heads + h] = top + std::log(sum);
        }
}

// scores become weights, d_weights become the gradient of the scores, in place
API void nano_softmax_backward(float* scores, float* d_weights, const float* mask, const float* normaliser,
                               const float* delta, int64_t queries, int64_t heads, int64_t keys) {
    for (int64_t q = 0; q < queries; ++q)
        for (int64_t h = 0; h < heads; ++h) {
            int64_t at = q * heads + h;
            float *row = scores + at * keys, *grad = d_weights + at * keys;
            const float* hidden = mask + q * keys;
            float log_sum = normaliser[at], shift = delta[at];
#pragma omp simd
            for (int64_t k = 0; k < keys; ++k) {
                row[k] = fast_exp(row[k] + hidden[k] - log_sum);
                grad[k] = (grad[k] - shift) * row[k];
            }
        }
}
