// Operators on rows that have no weight matrix: norm, rotation, round trips, Hadamard, pooling.
#include "rows.h"
#include "team.h"

using namespace lanes;
using namespace team;

API void dsv4_rms_norm(const float* x, const float* weight, float* y, long rows, long D, float eps, int threads) {
  divide(threads, rows * D, rows, [&](long r) {
    const float *in = x + r * D;
    float* out = y + r * D;
    const float factor = 1.0f / std::sqrt(dot(in, in, D) / (float)D + eps);
    if (weight)
      for (long i = 0; i < D; i++) out[i] = in[i] * factor * weight[i];
    else
      for (long i = 0; i < D; i++) out[i] = in[i] * factor;
  });
}

API void dsv4_rope_rotate(const float* x, const float* cos, const float* sin, float* y, long T, long H, long R,
                          int inverse) {
  const float sign = inverse ? -1.0f : 1.0f;
  for (long t = 0; t < T; t++)
    for (long h = 0; h < H; h++) {
      const float *in = x + (t * H + h) * R, *c = cos + t * (R / 2), *s = sin + t * (R / 2);
      float* out = y + (t * H + h) * R;
      for (long i = 0; i < R / 2; i++) {
        const float even = in[2 * i], odd = in[2 * i + 1], turn = s[i] * sign;
        out[2 * i] = even * c[i] - odd * turn;
        out[2 * i + 1] = even * turn + odd * c[i];
      }
    }
}

API void dsv4_fp8_round_trip(const float* x, float* y, long rows, long D, long group, int threads) {
  divide(threads, rows * D, rows, [&](long r) { rounding::fp8_row(x + r * D, y + r * D, D, group); });
}

API void dsv4_int8_round_trip(const float* x, float* y, long rows, long D, long group, int threads) {
  divide(threads, rows * D, rows, [&](long r) { rounding::int8_row(x + r * D, y + r * D, D, group); });
}

// The round trip of the input of a product; `trip` is a rounding::Trip other than NO_TRIP.
API void dsv4_input_round_trip(const float* x, float* y, long rows, long D, int trip, int threads) {
  divide(threads, rows * D, rows, [&](long r) { rounding::input_row(trip, x + r * D, y + r * D, D); });
}

API void dsv4_fp4_round_trip(const float* x, float* y, long rows, long D, long group, int threads) {
  divide(threads, rows * D, rows, [&](long r) { rounding::fp4_row(x + r * D, y + r * D, D, group); });
}

API void dsv4_hadamard(const float* x, float* y, long rows, long D, float scale, int threads) {
  divide(threads, rows * D, rows, [&](long r) {
    float* out = y + r * D;
    memcpy(out, x + r * D, D * sizeof(float));
    for (long half = 1; half < D; half *= 2)
      for (long first = 0; first < D; first += 2 * half)
        for (long i = first; i < first + half; i++) {
          const float low = out[i], high = out[i + half];
          out[i] = low + high;
          out[i + half] = low - high;
        }
    for (long i = 0; i < D; i++) out[i] *= scale;
  });
}

API void dsv4_compress_pool(const float* values, const float* gates, float* y, long B, long S, long D, int threads) {
  divide(threads, B * S * D, B, [&](long b) {
    for_runs(D, [&](long d, long n) {
      const float *v = values + b * S * D + d, *g = gates + b * S * D + d;
      f16 top = splat(-INFINITY), total = splat(0.0f), mean = splat(0.0f);
      for (long s = 0; s < S; s++) top = max(top, load_run(g + s * D, n));
      for (long s = 0; s < S; s++) {
        const f16 p = exp(load_run(g + s * D, n) - top);
        total += p;
        mean = fma(p, load_run(v + s * D, n), mean);
      }
      store_run(y + b * D + d, mean / total, n);
    });
  });
}

// values, gates [N, D]; states [slots, 3, D] = maximum, denominator, weighted sum; run g folds the rows
// sources[offsets[g] .. offsets[g + 1]) into begins[g] and stores ends[g], or the next entry where that is -1.
// Channels are shared out over threads, runs stay in order: later runs read what earlier ones have stored.
API void dsv4_compress_fold(const float* values, const float* gates, float* states, const int64_t* begins,
                            const int64_t* offsets, const int64_t* sources, const int64_t* ends, float* entries, long G,
                            long D, int threads) {
  const long blocks = (D + WIDTH - 1) / WIDTH;
  divide(threads, 4 * offsets[G] * D, blocks, [&](long block) {
    const long d = block * WIDTH, n = D - d < WIDTH ? D - d : WIDTH;
    float* out = entries + d;
    for (long g = 0; g < G; g++) {
      f16 top = splat(-INFINITY), total = splat(0.0f), mean = splat(0.0f);
      if (begins[g] >= 0) {
        const float* state = states + begins[g] * 3 * D + d;
        top = load_run(state, n), total = load_run(state + D, n), mean = load_run(state + 2 * D, n);
      }
      for (long i = offsets[g]; i < offsets[g + 1]; i++) {
        const f16 gate = load_run(gates + sources[i] * D + d, n), value = load_run(values + sources[i] * D + d, n);
        const f16 higher = max(top, gate), kept = exp(top - higher), weight = exp(gate - higher);
        total = fma(total, kept, weight);
        mean = fma(mean, kept, weight * value);
        top = higher;
      }
      if (ends[g] < 0) {
        store_run(out, mean / total, n);
        out += D;
      } else {
        float* state = states + ends[g] * 3 * D + d;
        store_run(state, top, n), store_run(state + D, total, n), store_run(state + 2 * D, mean, n);
      }
    }
  });
}

// x [N, width] to rows of `bytes` bytes in one of the formats that are not plain casts.
API void dsv4_pack_rows(const float* x, uint8_t* y, long N, long bytes, long format, long width, long rope, int threads) {
  divide(threads, N * width, N, [&](long i) {
    const float* in = x + i * width;
    uint8_t* out = y + i * bytes;
    if (format == rows::PACKED) rows::pack_packed(in, width - rope, rope, out);
    else if (format == rows::FP8) rows::pack_fp8(in, width, out);
    else rows::pack_fp4(in, width, out);
  });
}
