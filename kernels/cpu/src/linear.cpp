// x W^T for few rows: weights lie as nn.Linear stores them, are read once from memory, and no copy of them is packed; AVX-512
// only.

#include "common.h"

namespace {

#ifdef WIDE
struct Floats {
    static constexpr i64 step = 16;
    using Type = float;
    static __m512i load(const float* x) { return _mm512_loadu_si512(x); }
    static __m512i load(const float* x, i64 rest) { return _mm512_maskz_loadu_epi32(__mmask16((1u << rest) - 1), x); }
    static __m512 multiply(__m512i a, __m512i b, __m512 sum) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
};
#ifdef __AVX512BF16__
struct Halves {
    static constexpr i64 step = 32;
    using Type = bf16;
    static __m512i load(const bf16* x) { return _mm512_loadu_si512(x); }
    static __m512i load(const bf16* x, i64 rest) { return _mm512_maskz_loadu_epi16(__mmask32((1ull << rest) - 1), x); }
    static __m512 multiply(__m512i a, __m512i b, __m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};
#endif

constexpr i64 TILE = 96;     // rows of x that stay in L2 while all weights pass by
constexpr i64 CHUNK = 2048;  // bytes of a row that are used for all rows of x before the next ones: they stay in L1

inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline void narrow_four(__m128 x, float* y) { _mm_storeu_ps(y, x); }
#ifdef __AVX512BF16__
inline void narrow_four(__m128 x, bf16* y) { _mm_storel_epi64(reinterpret_cast<__m128i*>(y), (__m128i)_mm_cvtneps_pbh(x)); }
#endif

// sum[i, j] += x[i] . weight[j] over `depth` elements; the first PREFETCH rows of `next` are asked for meanwhile.
template <class Op, int ROWS, int OUTPUTS, int PREFETCH>
inline void dots(const typename Op::Type* x, i64 x_row, const typename Op::Type* const* weight, i64 depth,
                 const typename Op::Type* const* next, float* sum) {
    __m512 part[ROWS][OUTPUTS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) part[i][j] = _mm512_setzero_ps();
    i64 d = 0;
    for (; d + Op::step <= depth; d += Op::step) {
        __m512i w[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            w[j] = Op::load(weight[j] + d);
            if (j < PREFETCH) {
                // Few rows wait for memory alone, which is fastest in one line after the other.
                const i64 line = OUTPUTS == 8 ? (d / Op::step * PREFETCH + j) * Op::step : d;
                _mm_prefetch(reinterpret_cast<const char*>(next[OUTPUTS == 8 ? 0 : j] + line), _MM_HINT_T0);
            }
        }
        for (int i = 0; i < ROWS; ++i) {
            const __m512i left = Op::load(x + i * x_row + d);
            for (int j = 0; j < OUTPUTS; ++j) part[i][j] = Op::multiply(left, w[j], part[i][j]);
        }
    }
    if (d < depth) {
        __m512i w[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) w[j] = Op::load(weight[j] + d, depth - d);
        for (int i = 0; i < ROWS; ++i) {
            const __m512i left = Op::load(x + i * x_row + d, depth - d);
            for (int j = 0; j < OUTPUTS; ++j) part[i][j] = Op::multiply(left, w[j], part[i][j]);
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < OUTPUTS; j += 4) {
            float* to = sum + i * OUTPUTS + j;
            const __m128 four = sums_of(part[i][j], part[i][j + 1], part[i][j + 2], part[i][j + 3]);
            _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), four));
        }
    }
}

template <class Op>
using Dots = void (*)(const typename Op::Type*, i64, const typename Op::Type* const*, i64, const typename Op::Type* const*,
                      float*);

template <class Op, int OUTPUTS, int PREFETCH>
Dots<Op> dots_of(i64 rows) {
    if constexpr (OUTPUTS == 4) {
        if (rows == 6) return dots<Op, 6, OUTPUTS, PREFETCH>;
        if (rows == 5) return dots<Op, 5, OUTPUTS, PREFETCH>;
        if (rows == 4) return dots<Op, 4, OUTPUTS, PREFETCH>;
    }
    return rows == 3 ? dots<Op, 3, OUTPUTS, PREFETCH> : rows == 2 ? dots<Op, 2, OUTPUTS, PREFETCH> : dots<Op, 1, OUTPUTS, PREFETCH>;
}

// y[:, first..last] of x (M, D) times weight (F, D) transposed. The rows of x go in equal groups of at most six (three where
// eight outputs are summed side by side); each group asks for its share of the weights that come next, so that reading and
// multiplying overlap.
template <class Op, int OUTPUTS, class Y>
void linear_tile(const typename Op::Type* x, const typename Op::Type* weight, i64 M, i64 F, i64 D, Y* y, i64 first, i64 last) {
    using X = typename Op::Type;
    const i64 most = 24 / OUTPUTS, groups = (M + most - 1) / most, chunk = OUTPUTS == 8 ? D : CHUNK / i64(sizeof(X));
    std::vector<float> sum(M * OUTPUTS);
    for (i64 f = first; f < last; f += OUTPUTS) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (i64 d = 0; d < D; d += chunk) {
            const X *now[OUTPUTS], *next[OUTPUTS];
            const bool inside = d + chunk < D;
            for (i64 j = 0; j < OUTPUTS; ++j) {
                now[j] = weight + std::min(f + j, F - 1) * D + d;
                next[j] = inside ? now[j] + chunk : weight + std::min(f + OUTPUTS + j, F - 1) * D;
            }
            i64 asked = 0;
            for (i64 g = 0; g < groups; ++g) {
                const i64 low = g * M / groups, rows = (g + 1) * M / groups - low;
                const i64 ask = (OUTPUTS * (g + 1) + groups - 1) / groups - asked;
                const auto run = ask == 0   ? dots_of<Op, OUTPUTS, 0>(rows)
                                 : ask == 1 ? dots_of<Op, OUTPUTS, 1>(rows)
                                 : ask == 2 ? dots_of<Op, OUTPUTS, 2>(rows)
                                            : dots_of<Op, OUTPUTS, OUTPUTS>(rows);
                run(x + low * D + d, D, now, std::min(chunk, D - d), next + asked, sum.data() + low * OUTPUTS);
                asked += ask;
            }
        }
        const i64 outputs = std::min<i64>(OUTPUTS, last - f), whole = outputs / 4 * 4;
        for (i64 i = 0; i < M; ++i) {
            const float* from = sum.data() + i * OUTPUTS;
            Y* to = y + i * F + f;
            for (i64 j = 0; j < whole; j += 4) narrow_four(_mm_loadu_ps(from + j), to + j);
            for (i64 j = whole; j < outputs; ++j) narrow(from[j], to[j]);
        }
    }
}

template <class Op, class Y>
void linear_experts(const typename Op::Type* x, const typename Op::Type* weight, const i64* counts, i64 E, i64 D, i64 F, Y* y,
                    int threads) {
    const i64 share = (F / 8 + threads) / threads * 8;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 part = 0; part < threads; ++part) {
        const i64 first = part * share, last = std::min(F, first + share);
        for (i64 e = 0, start = 0; e < E; start += counts[e++])
            for (i64 m = 0; m < counts[e] && first < last; m += TILE) {
                const i64 rows = std::min(TILE, counts[e] - m);
                const auto run = rows <= 3 ? linear_tile<Op, 8, Y> : linear_tile<Op, 4, Y>;
                run(x + (start + m) * D, weight + e * F * D, rows, F, D, y + (start + m) * F, first, last);
            }
    }
}
#endif

}  // namespace

extern "C" {

#ifdef WIDE
// Experts as (E, F, D). One expert is an ordinary linear map.
void linear_f32(const float* x, const float* weight, const i64* counts, i64 E, i64 D, i64 F, float* y, int threads) {
    linear_experts<Floats>(x, weight, counts, E, D, F, y, threads);
}
#ifdef __AVX512BF16__
void linear_bf16(const bf16* x, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, bf16* y, int threads) {
    linear_experts<Halves>(x, weight, counts, E, D, F, y, threads);
}
void scores_bf16(const bf16* x, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, float* y, int threads) {
    linear_experts<Halves>(x, weight, counts, E, D, F, y, threads);
}
#endif
#endif

}  // extern "C"
