// x W^T for few rows: weights lie as nn.Linear stores them, are read once from memory, and no copy of them is packed.

#include "common.h"

namespace {

constexpr i64 TILE = 96;     // rows of x that stay in L2 while all weights pass by
constexpr i64 CHUNK = 2048;  // bytes of a row that are used for all rows of x before the next ones: they stay in L1

// sum[i, j] += x[i] . weight[j] over `depth` elements; the first PREFETCH rows of `next` are asked for meanwhile.
template <class W, int ROWS, int OUTPUTS, int PREFETCH>
inline void dots(const float* x, i64 x_row, const W* const* weight, i64 depth, const W* const* next, float* sum) {
    Vec part[ROWS][OUTPUTS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) part[i][j] = Vec(0);
    const auto step = [&](i64 d, i64 count, bool ask) {
        Vec w[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            w[j] = load(weight[j] + d, count);
            if (ask && j < PREFETCH) {
                // Few rows wait for memory alone, which is fastest in one line after the other.
                const i64 line = OUTPUTS == 8 ? (d / LANES * PREFETCH + j) * LANES : d;
                __builtin_prefetch(next[OUTPUTS == 8 ? 0 : j] + line);
            }
        }
        for (int i = 0; i < ROWS; ++i) {
            const Vec left = load(x + i * x_row + d, count);
            for (int j = 0; j < OUTPUTS; ++j) part[i][j] = at::vec::fmadd(left, w[j], part[i][j]);
        }
    };
    i64 d = 0;
    for (; d + LANES <= depth; d += LANES) step(d, LANES, true);
    if (d < depth) step(d, depth - d, false);
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) sum[i * OUTPUTS + j] += sum_of(part[i][j]);
}

template <class W>
using Dots = void (*)(const float*, i64, const W* const*, i64, const W* const*, float*);

constexpr i64 ACCUMULATORS = LANES == 8 ? 12 : 24;  // AVX2 has half of the registers

template <class W, int OUTPUTS, int PREFETCH>
Dots<W> dots_of(i64 rows) {
    if constexpr (OUTPUTS == 4 && ACCUMULATORS == 24) {
        if (rows == 6) return dots<W, 6, OUTPUTS, PREFETCH>;
        if (rows == 5) return dots<W, 5, OUTPUTS, PREFETCH>;
        if (rows == 4) return dots<W, 4, OUTPUTS, PREFETCH>;
    }
    if constexpr (OUTPUTS == 4 || ACCUMULATORS == 24) {
        if (rows == 3) return dots<W, 3, OUTPUTS, PREFETCH>;
        if (rows == 2) return dots<W, 2, OUTPUTS, PREFETCH>;
    }
    return dots<W, 1, OUTPUTS, PREFETCH>;
}

// y[:, first..last] of x (M, D) times weight (F, D) transposed. The rows of x go in equal groups of at most six (three where
// eight outputs are summed side by side); each group asks for its share of the weights that come next, so that reading and
// multiplying overlap.
template <int OUTPUTS, class X, class Y>
void linear_tile(const float* x, const X* weight, i64 M, i64 F, i64 D, Y* y, i64 first, i64 last) {
    const i64 most = ACCUMULATORS / OUTPUTS, groups = (M + most - 1) / most, chunk = OUTPUTS == 8 ? D : CHUNK / i64(sizeof(X));
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
                const auto run = ask == 0   ? dots_of<X, OUTPUTS, 0>(rows)
                                 : ask == 1 ? dots_of<X, OUTPUTS, 1>(rows)
                                 : ask == 2 ? dots_of<X, OUTPUTS, 2>(rows)
                                            : dots_of<X, OUTPUTS, OUTPUTS>(rows);
                run(x + low * D + d, D, now, std::min(chunk, D - d), next + asked, sum.data() + low * OUTPUTS);
                asked += ask;
            }
        }
        const i64 outputs = std::min<i64>(OUTPUTS, last - f);
        for (i64 i = 0; i < M; ++i)
            for (i64 j = 0; j < outputs; ++j) narrow(sum[i * OUTPUTS + j], y[i * F + f + j]);
    }
}

template <class X, class Y>
void linear(const X* x, const X* weight, const i64* counts, i64 E, i64 D, i64 F, Y* y, int threads) {
    const i64 share = (F / 8 + threads) / threads * 8;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 part = 0; part < threads; ++part) {
        const i64 first = part * share, last = std::min(F, first + share);
        std::vector<float> wide(TILE * D);
        for (i64 e = 0, start = 0; e < E; start += counts[e++])
            for (i64 m = 0; m < counts[e] && first < last; m += TILE) {
                const i64 rows = std::min(TILE, counts[e] - m);
                const X* from = x + (start + m) * D;
                for (i64 i = 0; i < rows * D; ++i) wide[i] = widen(from[i]);
                const auto run = rows <= ACCUMULATORS / 8 ? linear_tile<8, X, Y> : linear_tile<4, X, Y>;
                run(wide.data(), weight + e * F * D, rows, F, D, y + (start + m) * F, first, last);
            }
    }
}

}  // namespace

extern "C" {

// Experts as (E, F, D). One expert is an ordinary linear map.
void linear_f32(const float* x, const float* weight, const i64* counts, i64 E, i64 D, i64 F, float* y, int threads) {
    linear(x, weight, counts, E, D, F, y, threads);
}
void linear_bf16(const bf16* x, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, bf16* y, int threads) {
    linear(x, weight, counts, E, D, F, y, threads);
}
void scores_bf16(const bf16* x, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, float* y, int threads) {
    linear(x, weight, counts, E, D, F, y, threads);
}

}  // extern "C"
