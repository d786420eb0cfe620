// C = A . B of one tile: at::vec for float32, oneDNN's batch-reduce micro-kernels, which ship in libtorch, for bfloat16. Where
// the processor has none of these (UKERNELS is not defined), bfloat16 is widened as it is packed.
//
// The right operand of bfloat16 lies in pairs along the summed dimension (VNNI): element [k, j] at [k / 2, j, k % 2], an odd
// depth filled up with a row of zeros.

#pragma once

#include "common.h"
#ifdef UKERNELS
#include <ATen/native/CPUBlas.h>
#endif

namespace {

#ifdef UKERNELS
using Half = bf16;  // what bfloat16 operands are packed as
#else
using Half = float;
#endif

template <class P>
constexpr i64 GROUP = sizeof(P) == 2 ? 2 : 1;  // rows of B that lie side by side

template <class P>
inline i64 deep(i64 depth) { return (depth + GROUP<P> - 1) / GROUP<P> * GROUP<P>; }

// Columns that a packed B has room for: whole vectors, where at::vec reads them.
template <class P>
inline i64 wide(i64 width) { return GROUP<P> == 1 ? (width + LANES - 1) / LANES * LANES : width; }

constexpr i64 GRAIN = 16;  // numbers of rows are rounded up to it, since a micro-kernel is made for each

inline i64 rounded(i64 rows) { return (rows + GRAIN - 1) / GRAIN * GRAIN; }

// B (depth, width) packed from its rows; `rows(k)` gives row k.
template <class P, class Rows>
inline void pack(i64 depth, i64 width, Rows rows, P* out) {
    if constexpr (GROUP<P> == 1) {
        for (i64 k = 0; k < depth; ++k) {
            const auto* from = rows(k);
#pragma omp simd
            for (i64 j = 0; j < width; ++j) narrow(widen(from[j]), out[k * wide<P>(width) + j]);
        }
    } else {
        for (i64 k = 0; k < depth; k += 2) {
            const auto *first = rows(k), *second = k + 1 < depth ? rows(k + 1) : nullptr;
            P* to = out + k * width;
            if (second) {
#pragma omp simd
                for (i64 j = 0; j < width; ++j) narrow(widen(first[j]), to[2 * j]), narrow(widen(second[j]), to[2 * j + 1]);
            } else {
                for (i64 j = 0; j < width; ++j) narrow(widen(first[j]), to[2 * j]), narrow(0, to[2 * j + 1]);
            }
        }
    }
}

// y (columns, rows) = transpose of x (rows, columns).
template <class T>
inline void transpose(i64 rows, i64 columns, const T* x, i64 ldx, T* y, i64 ldy) {
    constexpr i64 SIDE = 64 / sizeof(T);
    for (i64 i = 0; i < rows; i += SIDE)
        for (i64 j = 0; j < columns; j += SIDE)
            at::vec::transpose_mxn<T>(x + i * ldx + j, ldx, y + j * ldy + i, ldy, int(std::min(SIDE, rows - i)),
                                      int(std::min(SIDE, columns - j)));
}

// Rows of x as P, as wide as their depth is packed.
template <class P, class Row>
inline void gather(i64 rows, i64 depth, Row row, P* out) {
    for (i64 i = 0; i < rows; ++i, out += deep<P>(depth)) {
        const auto* from = row(i);
#pragma omp simd
        for (i64 d = 0; d < depth; ++d) narrow(widen(from[d]), out[d]);
        for (i64 d = depth; d < deep<P>(depth); ++d) narrow(0, out[d]);
    }
}

// B = transpose of x (width, depth): pairs along depth are neighbours in x, so that words of them are transposed.
template <class P, class X>
inline void pack_transposed(i64 depth, i64 width, const X* x, P* out) {
    const auto rows = room<P>(width * deep<P>(depth));
    gather(width, depth, [&](i64 j) { return x + j * depth; }, rows.get());
    const i64 words = deep<P>(depth) / GROUP<P>;
    transpose(width, words, reinterpret_cast<const float*>(rows.get()), words, reinterpret_cast<float*>(out), wide<P>(width));
}

// R x (W vectors) of C; the last vector may have fewer columns.
template <int R, int W>
inline void tile(i64 depth, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, i64 last, bool add) {
    Vec sum[R][W];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) sum[i][j] = Vec(0);
    for (i64 k = 0; k < depth; ++k) {
        Vec right[W];
        for (int j = 0; j < W; ++j) right[j] = load(b + k * ldb + j * LANES);
        for (int i = 0; i < R; ++i) {
            const Vec left(a[i * lda + k]);
            for (int j = 0; j < W; ++j) sum[i][j] = at::vec::fmadd(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) {
            const i64 count = j + 1 < W ? LANES : last;
            float* to = c + i * ldc + j * LANES;
            store(add ? sum[i][j] + load(to, count) : sum[i][j], to, count);
        }
}

template <int W>
void columns(i64 M, i64 depth, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, i64 last, bool add) {
    i64 i = 0;
    for (; i + 6 <= M; i += 6) tile<6, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
    for (; i + 2 <= M; i += 2) tile<2, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
    if (i < M) tile<1, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
}

// C (M, N) = A (M, K) . B (K, N), added to C where `add` says so. B is packed, with room for ldb columns.
inline void gemm(i64 M, i64 N, i64 K, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, bool add) {
    constexpr i64 WIDEST = LANES == 8 ? 2 : 4;  // AVX2 has sixteen registers
    for (i64 j = 0; j < N;) {
        const i64 left = (N - j + LANES - 1) / LANES, vectors = std::min(left, WIDEST);
        const i64 last = std::min(LANES, N - j - (vectors - 1) * LANES);
        const auto run = vectors == 4 ? columns<WIDEST> : vectors == 3 ? columns<WIDEST == 4 ? 3 : 1>
                       : vectors == 2 ? columns<2> : columns<1>;
        run(M, K, a, lda, b + j, ldb, c + j, ldc, last, add);
        j += vectors * LANES;
    }
}
inline void gemm_done(const float*) {}

#ifdef UKERNELS
inline void gemm(i64 M, i64 N, i64 K, const bf16* a, i64 lda, const bf16* b, i64 ldb, float* c, i64 ldc, bool add) {
    at::native::cpublas::brgemm(M, N, deep<bf16>(K), lda, ldb, ldc, add, a, b, c, true);
}
inline void gemm_done(const bf16*) { at::native::cpublas::brgemm_release(true); }  // a thread's matrix registers
#endif

}  // namespace
