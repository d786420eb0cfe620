// Weighted sums of table rows and their gradients; row_dot is the weight gradient with one core.

#include "common.h"

namespace {

bool out_of_range(const i64* index, i64 count, i64 limit) {
    u64 largest = 0;
    for (i64 i = 0; i < count; ++i) largest = std::max(largest, u64(index[i]));
    return count && largest >= u64(limit);
}

inline void prefetch(const void* start, i64 bytes) {
    for (i64 byte = 0; byte < bytes; byte += 64) __builtin_prefetch(static_cast<const char*>(start) + byte);
}

constexpr i64 AHEAD = 16;  // picks whose rows are fetched in advance

// out = sum of weight * row over `count` rows, W vectors wide, summed in registers. `known` row numbers may be read ahead.
template <int W, class X>
void sum_block(const X* values, i64 C, const i64* row, const float* weight, i64 h, i64 count, i64 known, i64 last, float* out) {
    Vec sum[W];
    for (int j = 0; j < W; ++j) sum[j] = Vec(0);
    for (i64 p = 0; p < count; ++p) {
        if (p + AHEAD < known) prefetch(values + row[p + AHEAD] * C, W * LANES * i64(sizeof(X)));
        const X* from = values + row[p] * C;
        const Vec scale(weight[p * h]);
        for (int j = 0; j < W; ++j)
            sum[j] = at::vec::fmadd(scale, load(from + LANES * j, j + 1 < W ? LANES : last), sum[j]);
    }
    for (int j = 0; j < W; ++j) store(sum[j], out + LANES * j, j + 1 < W ? LANES : last);
}

// out (C) = sum over `count` picks of weight (count, h), slice by slice, times the row.
template <class X>
void sum_rows(const X* values, i64 C, const i64* row, const float* weight, i64 h, i64 count, i64 known, float* out) {
    constexpr int WIDEST = LANES == 16 ? 16 : 8;  // half of the registers
    const i64 c = C / h;
    for (i64 k = 0; k < h; ++k)
        for (i64 j = 0; j < c;) {
            const i64 left = (c - j + LANES - 1) / LANES;
            const i64 vectors = left >= WIDEST ? WIDEST : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const i64 last = std::min(LANES, c - j - (vectors - 1) * LANES);
            const auto run = vectors == WIDEST ? sum_block<WIDEST, X>
                             : vectors == 8    ? sum_block<8, X>
                             : vectors == 4    ? sum_block<4, X>
                             : vectors == 2    ? sum_block<2, X>
                                               : sum_block<1, X>;
            run(values + k * c + j, C, row, weight + k, h, count, known, last, out + k * c + j);
            j += vectors * LANES;
        }
}

template <class X>
int lookup(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, const float* weight, i64 h, const i64* group,
           i64 G, X* out, int threads) {
    if (out_of_range(row, T * M, N) || (group && out_of_range(group, T * M, G))) return 1;
    const i64 total = T * M;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> sum(C), sorted_weight(M * h);
        std::vector<i64> sorted_row(M), start(G + 1);
#pragma omp for
        for (i64 t = 0; t < T; ++t) {
            const i64* rows = row + t * M;
            const float* weights = weight + t * M * h;
            std::fill(start.begin(), start.end(), 0);
            start[G] = M;
            if (group) {  // picks of one group side by side, in their order
                for (i64 p = 0; p < M; ++p) ++start[group[t * M + p]];
                for (i64 g = G - 1, end = M; g >= 0; --g) end = start[g] = end - start[g];
                for (i64 p = 0; p < M; ++p) {
                    const i64 place = start[group[t * M + p]]++;
                    sorted_row[place] = rows[p];
                    for (i64 k = 0; k < h; ++k) sorted_weight[place * h + k] = weights[p * h + k];
                }
                for (i64 g = G; g > 0; --g) start[g] = start[g - 1];
                start[0] = 0;
                rows = sorted_row.data(), weights = sorted_weight.data();
            }
            for (i64 g = 0; g < G; ++g) {
                const i64 first = start[g], known = group ? M - first : total - t * M;
                sum_rows(values, C, rows + first, weights + first * h, h, start[g + 1] - first, known, sum.data());
                for (i64 i = 0; i < C; ++i) narrow(sum[i], out[(t * G + g) * C + i]);
            }
        }
    }
    return 0;
}

// out[t, pick, k] = <values[row, slice k], grad[t, group, slice k]>: d_weight of lookup, and row_dot with one core.
template <class X>
int slice_dot(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, i64 h, const i64* group, i64 G,
              const float* grad, float* out, int threads) {
    if (out_of_range(row, T * M, N) || (group && out_of_range(group, T * M, G))) return 1;
    const i64 c = C / h, total = T * M;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 t = 0; t < T; ++t)
        for (i64 p = t * M; p < (t + 1) * M; ++p) {
            if (p + AHEAD < total) prefetch(values + row[p + AHEAD] * C, C * i64(sizeof(X)));
            const float* from = grad + (t * G + (group ? group[p] : 0)) * C;
            for (i64 k = 0; k < h; ++k) out[p * h + k] = dot(values + row[p] * C + k * c, from + k * c, c);
        }
    return 0;
}

// Gradient of every table row, rows in order, the picks of a row in order: deterministic, each row written once.
// With d_weight, slice_dot is done on the way, while the row is at hand.
template <class X>
int lookup_backward(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, const float* weight, i64 h,
                    const i64* group, i64 G, const float* grad, X* d_values, float* d_weight, int threads) {
    const i64 c = C / h, total = T * M;
    if (out_of_range(row, total, N) || (group && out_of_range(group, total, G))) return 1;
    std::vector<i32> start(N + 1), pick(total);
    for (i64 p = 0; p < total; ++p) ++start[row[p] + 1];
    for (i64 i = 0; i < N; ++i) start[i + 1] += start[i];
    for (i64 p = 0; p < total; ++p) pick[start[row[p]]++] = i32(p);  // start[i] becomes the end of row i
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> sum(C);
#pragma omp for schedule(dynamic, 256)
        for (i64 i = 0; i < N; ++i) {
            const i32 first = i ? start[i - 1] : 0, last = start[i];
            X* to = d_values + i * C;
            if (first == last) {
                std::memset(to, 0, C * sizeof(X));
                continue;
            }
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (i32 q = first; q < last; ++q) {
                if (q + 2 < total) prefetch(grad + pick[q + 2] / M * G * C, std::min<i64>(C * 4, 1024));
                const i64 p = pick[q];
                const float* from = grad + (p / M * G + (group ? group[p] : 0)) * C;
                for (i64 k = 0; k < h; ++k) {
                    add_scaled(sum.data() + k * c, from + k * c, weight[p * h + k], c);
                    if (d_weight) d_weight[p * h + k] = dot(values + i * C + k * c, from + k * c, c);
                }
            }
            for (i64 j = 0; j < C; ++j) narrow(sum[j], to[j]);
        }
    }
    return 0;
}

}  // namespace

extern "C" {

#define TABLE_OPS(X, suffix)                                                                                               \
    int lookup_##suffix(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, const float* weight, i64 h,           \
                        const i64* group, i64 G, X* out, int threads) {                                                    \
        return lookup(values, N, C, row, T, M, weight, h, group, G, out, threads);                                         \
    }                                                                                                                      \
    int slice_dot_##suffix(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, i64 h, const i64* group, i64 G,    \
                           const float* grad, float* out, int threads) {                                                   \
        return slice_dot(values, N, C, row, T, M, h, group, G, grad, out, threads);                                        \
    }                                                                                                                      \
    int lookup_backward_##suffix(const X* values, i64 N, i64 C, const i64* row, i64 T, i64 M, const float* weight, i64 h,  \
                                 const i64* group, i64 G, const float* grad, X* d_values, float* d_weight, int threads) {  \
        return lookup_backward(values, N, C, row, T, M, weight, h, group, G, grad, d_values, d_weight, threads);           \
    }
TABLE_OPS(float, f32)
TABLE_OPS(bf16, bf16)
#undef TABLE_OPS

}  // extern "C"
