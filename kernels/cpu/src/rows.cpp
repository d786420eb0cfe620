// What is done to one row of activations at a time, with its gradient: RMS norm, SwiGLU, and what attention does to its heads.

#include "common.h"

namespace {

constexpr i64 WIDEST_HEAD = 1024;
constexpr i64 STRIP_ROWS = 256;  // rows whose share of a norm's weight gradient is summed apart, by whatever thread

inline float sum_of_squares(const float* __restrict x, i64 width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < width; ++j) sum += x[j] * x[j];
    return sum;
}

template <class X>
inline void widen_row(const X* __restrict x, i64 width, float* __restrict out) {
#pragma omp simd
    for (i64 j = 0; j < width; ++j) out[j] = widen(x[j]);
}

// x * scale is the normalised row; returns scale.
inline float norm_scale(const float* x, i64 width, float eps) {
    return 1.0f / std::sqrt(sum_of_squares(x, width) / float(width) + eps);
}

// dx of y = x * scale * weight from dy, in float32; d_weight gains its share.
inline void norm_backward(const float* __restrict x, const float* __restrict weight, const float* __restrict dy, i64 width,
                          float scale, float* __restrict dx, float* __restrict d_weight) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (i64 j = 0; j < width; ++j) along += dy[j] * weight[j] * x[j];
    const float back = along * scale * scale * scale / float(width);
#pragma omp simd
    for (i64 j = 0; j < width; ++j) {
        dx[j] = dy[j] * weight[j] * scale - x[j] * back;
        d_weight[j] += dy[j] * x[j] * scale;
    }
}

template <class X, class Y>
void rms_norm(const X* x, const float* weight, i64 rows, i64 width, float eps, Y* y, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> wide(width);
#pragma omp for
        for (i64 i = 0; i < rows; ++i) {
            widen_row(x + i * width, width, wide.data());
            const float scale = norm_scale(wide.data(), width, eps);
            Y* to = y + i * width;
#pragma omp simd
            for (i64 j = 0; j < width; ++j) narrow(wide[j] * scale * weight[j], to[j]);
        }
    }
}

// d_weight (width) arrives zeroed.
template <class X, class Y>
void rms_norm_backward(const X* x, const float* weight, const Y* dy, i64 rows, i64 width, float eps, X* dx, float* d_weight,
                       int threads) {
    const i64 strips = (rows + STRIP_ROWS - 1) / STRIP_ROWS;
    std::vector<float> partial(strips * width);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> wide(width), above(width), out(width);
#pragma omp for
        for (i64 s = 0; s < strips; ++s)
            for (i64 i = s * STRIP_ROWS; i < std::min(rows, (s + 1) * STRIP_ROWS); ++i) {
                widen_row(x + i * width, width, wide.data());
                widen_row(dy + i * width, width, above.data());
                const float scale = norm_scale(wide.data(), width, eps);
                norm_backward(wide.data(), weight, above.data(), width, scale, out.data(), partial.data() + s * width);
                for (i64 j = 0; j < width; ++j) narrow(out[j], dx[i * width + j]);
            }
    }
    for (i64 s = 0; s < strips; ++s)
        for (i64 j = 0; j < width; ++j) d_weight[j] += partial[s * width + j];
}

// x (rows, 2F), gate beside up -> silu(gate) * up.
template <class X>
void swiglu(const X* x, i64 rows, i64 F, X* y, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < rows; ++i) {
        const X *gate = x + 2 * i * F, *up = gate + F;
        X* to = y + i * F;
#pragma omp simd
        for (i64 j = 0; j < F; ++j) narrow(widen(gate[j]) * sigmoid(widen(gate[j])) * widen(up[j]), to[j]);
    }
}

template <class X>
void swiglu_backward(const X* x, const X* dy, i64 rows, i64 F, X* dx, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < rows; ++i) {
        const X *gate = x + 2 * i * F, *up = gate + F, *from = dy + i * F;
        X *d_gate = dx + 2 * i * F, *d_up = d_gate + F;
#pragma omp simd
        for (i64 j = 0; j < F; ++j) {
            const float g = widen(gate[j]), s = sigmoid(g), silu = g * s, d = widen(from[j]);
            narrow(d * widen(up[j]) * (s + silu * (1.0f - s)), d_gate[j]);
            narrow(d * silu, d_up[j]);
        }
    }
}

// qkv (B, T, N, K) of N = Hq + 2 Hk heads -> q (B, Hq, T, K), k and v (B, Hk, T, K): queries and keys normalised (but for null
// weights) and turned by their positions, values as they are. cos and sin (T, K) hold every frequency twice.
template <class X>
struct Heads {
    const float *q_weight, *k_weight, *cos, *sin;
    i64 B, T, Hq, Hk, K;
    float eps;
    X *q, *k, *v;

    i64 count() const { return Hq + 2 * Hk; }
    bool is_value(i64 n) const { return n >= Hq + Hk; }
    const float* weight(i64 n) const { return n < Hq ? q_weight : k_weight; }
    X* at(i64 b, i64 t, i64 n) const {
        if (n < Hq) return q + ((b * Hq + n) * T + t) * K;
        if (n < Hq + Hk) return k + ((b * Hk + n - Hq) * T + t) * K;
        return v + ((b * Hk + n - Hq - Hk) * T + t) * K;
    }
};

// out = x turned by a position, or back (`sign` -1): a pair of halves is turned as cos * x + turn * (x with its halves swapped).
inline void turn(const float* __restrict x, const float* __restrict cos, const float* __restrict signed_sin, float sign, i64 K,
                 float* __restrict swapped, float* __restrict out) {
    std::memcpy(swapped, x + K / 2, K / 2 * sizeof(float));
    std::memcpy(swapped + K / 2, x, K / 2 * sizeof(float));
#pragma omp simd
    for (i64 j = 0; j < K; ++j) out[j] = x[j] * cos[j] + sign * swapped[j] * signed_sin[j];
}

inline void sign_sin(const float* sin, i64 K, float* out) {
    for (i64 j = 0; j < K; ++j) out[j] = j < K / 2 ? -sin[j] : sin[j];
}

template <class X>
inline void narrow_row(const float* __restrict x, i64 width, X* __restrict out) {
#pragma omp simd
    for (i64 j = 0; j < width; ++j) narrow(x[j], out[j]);
}

// WIDTH is K, known to the compiler, or 0.
template <i64 WIDTH, class X>
void heads(const X* qkv, Heads<X> to, int threads) {
    constexpr i64 ROOM = WIDTH ? WIDTH : WIDEST_HEAD;
    const i64 K = WIDTH ? WIDTH : to.K;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        alignas(64) float x[ROOM], swapped[ROOM], turned[ROOM], sin[ROOM];
#pragma omp for
        for (i64 bt = 0; bt < to.B * to.T; ++bt) {
            const i64 b = bt / to.T, t = bt % to.T;
            sign_sin(to.sin + t * K, K, sin);
            for (i64 n = 0; n < to.count(); ++n) {
                const X* from = qkv + (bt * to.count() + n) * K;
                X* out = to.at(b, t, n);
                if (to.is_value(n)) {
                    std::memcpy(out, from, K * sizeof(X));
                    continue;
                }
                widen_row(from, K, x);
                if (const float* weight = to.weight(n)) {
                    const float scale = norm_scale(x, K, to.eps);
#pragma omp simd
                    for (i64 j = 0; j < K; ++j) x[j] *= scale * weight[j];
                }
                turn(x, to.cos + t * K, sin, 1, K, swapped, turned);
                narrow_row(turned, K, out);
            }
        }
    }
}

// q, k and v of `from` are gradients here; d_weight (2, K), of queries and keys, arrives zeroed.
template <i64 WIDTH, class X>
void heads_backward(const X* qkv, Heads<X> from, X* d_qkv, float* d_weight, int threads) {
    constexpr i64 ROOM = WIDTH ? WIDTH : WIDEST_HEAD;
    const i64 K = WIDTH ? WIDTH : from.K, rows = from.B * from.T;
    const i64 strips = (rows + STRIP_ROWS - 1) / STRIP_ROWS;
    std::vector<float> partial(strips * 2 * K);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        alignas(64) float x[ROOM], swapped[ROOM], dy[ROOM], dx[ROOM], sin[ROOM];
#pragma omp for
        for (i64 strip = 0; strip < strips; ++strip)
            for (i64 bt = strip * STRIP_ROWS; bt < std::min(rows, (strip + 1) * STRIP_ROWS); ++bt) {
                const i64 b = bt / from.T, t = bt % from.T;
                sign_sin(from.sin + t * K, K, sin);
                for (i64 n = 0; n < from.count(); ++n) {
                    const X* above = from.at(b, t, n);
                    X* to = d_qkv + (bt * from.count() + n) * K;
                    if (from.is_value(n)) {
                        std::memcpy(to, above, K * sizeof(X));
                        continue;
                    }
                    widen_row(above, K, x);
                    turn(x, from.cos + t * K, sin, -1, K, swapped, dy);
                    const float *weight = from.weight(n), *result = dy;
                    if (weight) {
                        widen_row(qkv + (bt * from.count() + n) * K, K, x);
                        const float scale = norm_scale(x, K, from.eps);
                        norm_backward(x, weight, dy, K, scale, dx, partial.data() + (2 * strip + (n >= from.Hq)) * K);
                        result = dx;
                    }
                    narrow_row(result, K, to);
                }
            }
    }
    for (i64 strip = 0; strip < strips; ++strip)
        for (i64 j = 0; j < 2 * K; ++j) d_weight[j] += partial[strip * 2 * K + j];
}

// Calls function(width) with K as a constant where it is a common one, else with 0.
template <class Function>
void with_width(i64 K, Function function) {
    switch (K) {
        case 16: return function(std::integral_constant<i64, 16>());
        case 32: return function(std::integral_constant<i64, 32>());
        case 64: return function(std::integral_constant<i64, 64>());
        default: return function(std::integral_constant<i64, 0>());
    }
}

}  // namespace

extern "C" {

#define NORM(X, Y, suffix)                                                                                                   \
    void rms_norm_##suffix(const X* x, const float* weight, i64 rows, i64 width, float eps, Y* y, int threads) {             \
        rms_norm(x, weight, rows, width, eps, y, threads);                                                                   \
    }                                                                                                                        \
    void rms_norm_backward_##suffix(const X* x, const float* weight, const Y* dy, i64 rows, i64 width, float eps, X* dx,     \
                                    float* d_weight, int threads) {                                                          \
        rms_norm_backward(x, weight, dy, rows, width, eps, dx, d_weight, threads);                                           \
    }
NORM(float, float, f32_f32)
NORM(float, bf16, f32_bf16)
NORM(bf16, bf16, bf16_bf16)
#undef NORM

#define ROWS(X, suffix)                                                                                                      \
    void swiglu_##suffix(const X* x, i64 rows, i64 F, X* y, int threads) { swiglu(x, rows, F, y, threads); }                 \
    void swiglu_backward_##suffix(const X* x, const X* dy, i64 rows, i64 F, X* dx, int threads) {                            \
        swiglu_backward(x, dy, rows, F, dx, threads);                                                                        \
    }                                                                                                                        \
    void heads_##suffix(const X* qkv, const float* q_weight, const float* k_weight, const float* cos, const float* sin,      \
                        i64 B, i64 T, i64 Hq, i64 Hk, i64 K, float eps, X* q, X* k, X* v, int threads) {                     \
        const Heads<X> to{q_weight, k_weight, cos, sin, B, T, Hq, Hk, K, eps, q, k, v};                                      \
        with_width(K, [&](auto width) { heads<width.value>(qkv, to, threads); });                                            \
    }                                                                                                                        \
    void heads_backward_##suffix(const X* qkv, const float* q_weight, const float* k_weight, const float* cos,               \
                                 const float* sin, i64 B, i64 T, i64 Hq, i64 Hk, i64 K, float eps, X* dq, X* dk, X* dv,      \
                                 X* d_qkv, float* d_weight, int threads) {                                                   \
        const Heads<X> from{q_weight, k_weight, cos, sin, B, T, Hq, Hk, K, eps, dq, dk, dv};                                 \
        with_width(K, [&](auto width) { heads_backward<width.value>(qkv, from, d_qkv, d_weight, threads); });                \
    }
ROWS(float, f32)
ROWS(bf16, bf16)
#undef ROWS

}  // extern "C"
