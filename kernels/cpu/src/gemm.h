// C = A . B: of one tile by at::vec for float32, and by oneDNN's batch-reduce micro-kernels, which ship in libtorch, for bfloat16
// (where the processor has none of these, UKERNELS is not defined and bfloat16 is widened as it is packed); of whole matrices of
// float32 by libtorch's BLAS.
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

constexpr i64 WIDEST = LANES == 8 ? 2 : 4;  // vectors of a tile's row: AVX2 has sixteen registers

// B (depth, width) as it is packed. Of bfloat16 the rows follow each other; of float32 those of a panel, as many columns as a
// tile is wide, so that a tile reads one line after the other (rows a power of two apart would share the same few cache sets).
template <class P>
struct Packed {
    i64 depth, width;
    i64 panel() const { return std::min(WIDEST * LANES, (width + LANES - 1) / LANES * LANES); }
    i64 panels() const { return (width + panel() - 1) / panel(); }
    i64 size() const { return GROUP<P> == 1 ? depth * panels() * panel() : deep<P>(depth) * width; }
};

constexpr i64 GRAIN = 16;
constexpr i64 SLICE = 128;  // rows of a panel that all rows of A go through before the next: they stay in L1

inline i64 rounded(i64 rows) { return (rows + GRAIN - 1) / GRAIN * GRAIN; }

// Rows of A: micro-kernels are made for each number of them, so that it is rounded up.
template <class P>
inline i64 made_for(i64 rows) { return GROUP<P> == 1 ? rows : rounded(rows); }

// B (depth, width) packed from its rows; `rows(k)` gives row k. What fills up a panel is 0: a tile multiplies it, and what memory
// happens to hold may be denormal, ten times as slow.
template <class P, class Rows>
inline void pack(i64 depth, i64 width, Rows rows, P* out) {
    if constexpr (GROUP<P> == 1) {
        const Packed<P> shape{depth, width};
        const i64 panel = shape.panel();
        for (i64 k = 0; k < depth; ++k) {
            const auto* from = rows(k);
            for (i64 first = 0; first < width; first += panel) {
                P* to = out + first * depth + k * panel;
                const i64 count = std::min(panel, width - first);
#pragma omp simd
                for (i64 j = 0; j < count; ++j) narrow(widen(from[first + j]), to[j]);
                std::fill(to + count, to + panel, P(0));
            }
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
    const i64 words = deep<P>(depth) / GROUP<P>, panel = GROUP<P> == 1 ? Packed<P>{depth, width}.panel() : width;
    for (i64 first = 0; first < width; first += panel) {
        const i64 count = std::min(panel, width - first);
        float* to = reinterpret_cast<float*>(out) + first * words;
        transpose(count, words, reinterpret_cast<const float*>(rows.get()) + first * words, words, to, panel);
        for (i64 k = 0; k < words; ++k) std::fill(to + k * panel + count, to + (k + 1) * panel, 0.0f);
    }
}

// R x (W vectors) of C, on top of what is there if `add`; the last vector may have fewer columns.
template <int R, int W>
inline void tile(i64 depth, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, i64 last, bool add) {
    Vec sum[R][W];
    const auto count = [&](int j) { return j + 1 < W ? LANES : last; };
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) sum[i][j] = add ? load(c + i * ldc + j * LANES, count(j)) : Vec(0);
    for (i64 k = 0; k < depth; ++k) {
        Vec right[W];
        for (int j = 0; j < W; ++j) right[j] = load(b + k * ldb + j * LANES);
        for (int i = 0; i < R; ++i) {
            const Vec left(a[i * lda + k]);
            for (int j = 0; j < W; ++j) sum[i][j] = at::vec::fmadd(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) store(sum[i][j], c + i * ldc + j * LANES, count(j));
}

template <int W>
void columns(i64 M, i64 depth, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, i64 last, bool add) {
    i64 i = 0;
    for (; i + 6 <= M; i += 6) tile<6, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
    for (; i + 2 <= M; i += 2) tile<2, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
    if (i < M) tile<1, W>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, last, add);
}

// C (M, N) = A (M, K) . B (K, N), added to C where `add` says so. B's rows lie ldb apart; N is a multiple of LANES, or its last
// vector may be read whole.
inline void gemm(i64 M, i64 N, i64 K, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, bool add) {
    for (i64 j = 0; j < N;) {
        const i64 left = (N - j + LANES - 1) / LANES, vectors = std::min(left, WIDEST);
        const i64 last = std::min(LANES, N - j - (vectors - 1) * LANES);
        const auto run = vectors == 4 ? columns<WIDEST> : vectors == 3 ? columns<WIDEST == 4 ? 3 : 1>
                       : vectors == 2 ? columns<2> : columns<1>;
        run(M, K, a, lda, b + j, ldb, c + j, ldc, last, add);
        j += vectors * LANES;
    }
}

// The same with a packed B, of which the first K rows and N columns count.
inline void gemm(i64 M, i64 N, i64 K, const float* a, i64 lda, const float* b, Packed<float> shape, float* c, i64 ldc, bool add) {
    const i64 panel = shape.panel();
    for (i64 first = 0; first < N; first += panel)
        for (i64 k = 0; k < K; k += SLICE)
            gemm(M, std::min(panel, N - first), std::min(SLICE, K - k), a + k, lda, b + first * shape.depth + k * panel, panel,
                 c + first, ldc, add || k);
}
inline void gemm_done(const float*) {}

#ifdef UKERNELS
inline void gemm(i64 M, i64 N, i64 K, const bf16* a, i64 lda, const bf16* b, Packed<bf16> shape, float* c, i64 ldc, bool add) {
    at::native::cpublas::brgemm(M, N, deep<bf16>(K), lda, shape.width, ldc, add, a, b, c, true);
}
inline void gemm_done(const bf16*) { at::native::cpublas::brgemm_release(true); }  // a thread's matrix registers
#endif

// B (depth, width) of `product`: packed where micro-kernels read it, as it lies where the BLAS does; `turned`: its transpose lies.
template <class P>
struct Right {
    const P* at = nullptr;
    i64 depth = 0, width = 0;
    bool turned = false;
};

template <class P, class X>
inline Right<P> right(i64 depth, i64 width, const X* x, P* packed) {
    if constexpr (std::is_same_v<P, X>) return {x, depth, width};
    if constexpr (GROUP<P> == 1)
        gather(depth, width, [&](i64 k) { return x + k * width; }, packed);
    else
        pack<P>(depth, width, [&](i64 k) { return x + k * width; }, packed);
    return {packed, depth, width};
}

// B = transpose of x (width, depth).
template <class P, class X>
inline Right<P> right_turned(i64 depth, i64 width, const X* x, P* packed) {
    if constexpr (std::is_same_v<P, X>) return {x, depth, width, true};
    pack_transposed<P>(depth, width, x, packed);
    return {packed, depth, width};
}

// torch's own BLAS, which libtorch carries.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
                       const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
                       const int* ldc);

inline void blas(bool turn_a, bool turn_b, i64 M, i64 N, i64 K, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc,
                 bool add) {
    const int m = int(M), n = int(N), k = int(K), la = int(lda), lb = int(ldb), lc = int(ldc);
    const float one = 1, beta = add ? 1.0f : 0.0f;
    sgemm_(turn_b ? "T" : "N", turn_a ? "T" : "N", &n, &m, &k, &one, b, &lb, a, &la, &beta, c, &lc);  // columns first
}

// C (M, N) = A (M, K) . B
inline void product(i64 M, i64 N, i64 K, const float* a, i64 lda, Right<float> b, float* c, i64 ldc) {
    blas(false, b.turned, M, N, K, a, lda, b.at, b.turned ? b.depth : b.width, c, ldc, false);
}
#ifdef UKERNELS
inline void product(i64 M, i64 N, i64 K, const bf16* a, i64 lda, Right<bf16> b, float* c, i64 ldc) {
    gemm(M, N, K, a, lda, b.at, Packed<bf16>{b.depth, b.width}, c, ldc, false);
}
#endif

// C (M, N) = A (K, M) transposed . B (K, N)
template <class P>
inline void product_turned(i64 M, i64 N, i64 K, const P* a, const P* b, float* c, bool add) {
    if constexpr (GROUP<P> == 1) blas(true, false, M, N, K, a, M, b, N, c, N, add);
}

}  // namespace
