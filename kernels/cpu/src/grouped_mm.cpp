// Grouped matrix product, one weight per expert over rows sorted by expert, and its gradients; AVX-512 only.

#include "common.h"

namespace {

#ifdef WIDE
// One 32-bit word of the left operand times 16 words of the right one: a float each, or a pair of bfloat16 along k.
struct Single {
    static __m512 multiply(const void* a, __m512i b, __m512 sum) {
        return _mm512_fmadd_ps(_mm512_set1_ps(*static_cast<const float*>(a)), _mm512_castsi512_ps(b), sum);
    }
    static void store(float* out, __mmask16 mask, __m512 sum) { _mm512_mask_storeu_ps(out, mask, sum); }
};
#ifdef __AVX512BF16__
struct Pair {
    static __m512 multiply(const void* a, __m512i b, __m512 sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(*static_cast<const i32*>(a)), (__m512bh)b);
    }
    static void store(bf16* out, __mmask16 mask, __m512 sum) {
        _mm256_mask_storeu_epi16(out, mask, (__m256i)_mm512_cvtneps_pbh(sum));
    }
    static void store(float* out, __mmask16 mask, __m512 sum) { _mm512_mask_storeu_ps(out, mask, sum); }
};
#endif

// R x (16*W) tile of out = left . right; strides in 32-bit words; `add` continues from a float tile.
template <class Op, int R, int W, class Y>
inline void tile(i64 depth, const i32* left, i64 left_row, i64 left_k, const i32* right, i64 right_k, __mmask16 last, Y* out,
                 i64 out_row, bool add) {
    __m512 sum[R][W];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) sum[i][j] = _mm512_setzero_ps();
    for (i64 k = 0; k < depth; ++k) {
        __m512i b[W];
        for (int j = 0; j < W; ++j)
            b[j] = j + 1 < W ? _mm512_loadu_si512(right + k * right_k + 16 * j)
                             : _mm512_maskz_loadu_epi32(last, right + k * right_k + 16 * j);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < W; ++j) sum[i][j] = Op::multiply(left + i * left_row + k * left_k, b[j], sum[i][j]);
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < W; ++j) {
            __mmask16 mask = j + 1 < W ? 0xffff : last;
            Y* to = out + i * out_row + 16 * j;
            if constexpr (sizeof(Y) == 4)
                if (add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(mask, to));
            Op::store(to, mask, sum[i][j]);
        }
}

template <class Op, int W, class Y>
void columns(i64 rows, i64 depth, const i32* left, i64 left_row, i64 left_k, const i32* right, i64 right_k, __mmask16 last,
             Y* out, i64 out_row, bool add) {
    i64 i = 0;
    for (; i + 6 <= rows; i += 6)
        tile<Op, 6, W>(depth, left + i * left_row, left_row, left_k, right, right_k, last, out + i * out_row, out_row, add);
    for (; i + 2 <= rows; i += 2)
        tile<Op, 2, W>(depth, left + i * left_row, left_row, left_k, right, right_k, last, out + i * out_row, out_row, add);
    for (; i < rows; ++i)
        tile<Op, 1, W>(depth, left + i * left_row, left_row, left_k, right, right_k, last, out + i * out_row, out_row, add);
}

template <class Op, class Y>
void product(i64 rows, i64 width, i64 depth, const i32* left, i64 left_row, i64 left_k, const i32* right, i64 right_k,
             Y* out, i64 out_row, bool add = false) {
    for (i64 j = 0; j < width; j += 64) {
        const i64 rest = std::min<i64>(64, width - j), vectors = (rest + 15) / 16;
        const __mmask16 last = __mmask16(0xffffu >> (16 * vectors - rest));
        const auto run = vectors == 4   ? columns<Op, 4, Y>
                         : vectors == 3 ? columns<Op, 3, Y>
                         : vectors == 2 ? columns<Op, 2, Y>
                                        : columns<Op, 1, Y>;
        run(rows, depth, left, left_row, left_k, right + j, right_k, last, out + j, out_row, add);
    }
}

inline const i32* words(const void* x) { return static_cast<const i32*>(x); }

// Rows 2k and 2k+1 of a (rows, width) bfloat16 matrix, interleaved: word [k, column] holds the pair. Odd rows end in 0.
void pair_rows(const bf16* x, i64 rows, i64 width, i32* out) {
    for (i64 k = 0; k < rows / 2; ++k)
#pragma omp simd
        for (i64 j = 0; j < width; ++j)
            out[k * width + j] = i32(uint32_t(x[2 * k * width + j].bits) | uint32_t(x[(2 * k + 1) * width + j].bits) << 16);
    if (rows % 2)
        for (i64 j = 0; j < width; ++j) out[rows / 2 * width + j] = i32(x[(rows - 1) * width + j].bits);
}

void transpose_words(const i32* x, i64 rows, i64 width, i32* out) {
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < width; ++j) out[j * rows + i] = x[i * width + j];
}

constexpr i64 STRIP = 256;  // rows of one expert that stay in the cache while its weight gradient is summed

std::vector<i64> starts(const i64* counts, i64 E) {
    std::vector<i64> start(E + 1);
    for (i64 e = 0; e < E; ++e) start[e + 1] = start[e] + counts[e];
    return start;
}
#endif

}  // namespace

extern "C" {

// 0: no grouped product here; 1: float32; 2: bfloat16 too.
int grouped_level() {
#if defined(WIDE) && defined(__AVX512BF16__)
    return 2;
#elif defined(WIDE)
    return 1;
#else
    return 0;
#endif
}

#ifdef WIDE
void grouped_f32(const float* x, const float* weight, const i64* counts, i64 E, i64 D, i64 F, float* y, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i64 e = 0; e < E; ++e)
        if (counts[e])
            product<Single>(counts[e], F, D, words(x + start[e] * D), D, 1, words(weight + e * D * F), F,
                            y + start[e] * F, F);
}

void grouped_dx_f32(const float* dy, const float* weight, const i64* counts, i64 E, i64 D, i64 F, float* dx, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<i32> turned(D * F);
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < E; ++e) {
            if (!counts[e]) continue;
            transpose_words(words(weight + e * D * F), D, F, turned.data());
            product<Single>(counts[e], D, F, words(dy + start[e] * F), F, 1, turned.data(), D, dx + start[e] * D, D);
        }
    }
}

void grouped_dw_f32(const float* x, const float* dy, const i64* counts, i64 E, i64 D, i64 F, float* dw, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i64 e = 0; e < E; ++e) {
        float* out = dw + e * D * F;
        if (!counts[e]) std::memset(out, 0, D * F * sizeof(float));
        for (i64 s = 0; s < counts[e]; s += STRIP)
            product<Single>(D, F, std::min(STRIP, counts[e] - s), words(x + (start[e] + s) * D), 1, D,
                            words(dy + (start[e] + s) * F), F, out, F, s > 0);
    }
}
#endif

#if defined(WIDE) && defined(__AVX512BF16__)
// D and F must be even: a word holds two neighbours along the summed dimension.
void grouped_bf16(const bf16* x, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, bf16* y, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<i32> paired(D / 2 * F);
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < E; ++e) {
            if (!counts[e]) continue;
            pair_rows(weight + e * D * F, D, F, paired.data());
            product<Pair>(counts[e], F, D / 2, words(x + start[e] * D), D / 2, 1, paired.data(), F, y + start[e] * F, F);
        }
    }
}

void grouped_dx_bf16(const bf16* dy, const bf16* weight, const i64* counts, i64 E, i64 D, i64 F, bf16* dx, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<i32> turned(D * F / 2);
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < E; ++e) {
            if (!counts[e]) continue;
            transpose_words(words(weight + e * D * F), D, F / 2, turned.data());
            product<Pair>(counts[e], D, F / 2, words(dy + start[e] * F), F / 2, 1, turned.data(), D, dx + start[e] * D, D);
        }
    }
}

void grouped_dw_bf16(const bf16* x, const bf16* dy, const i64* counts, i64 E, i64 D, i64 F, bf16* dw, int threads) {
    const auto start = starts(counts, E);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<i32> x_pair(STRIP / 2 * D), dy_pair(STRIP / 2 * F);
        std::vector<float> sum(D * F);
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < E; ++e) {
            if (!counts[e]) std::fill(sum.begin(), sum.end(), 0.0f);
            for (i64 s = 0; s < counts[e]; s += STRIP) {
                const i64 rows = std::min(STRIP, counts[e] - s);
                pair_rows(x + (start[e] + s) * D, rows, D, x_pair.data());
                pair_rows(dy + (start[e] + s) * F, rows, F, dy_pair.data());
                product<Pair>(D, F, (rows + 1) / 2, x_pair.data(), 1, D, dy_pair.data(), F, sum.data(), F, s > 0);
            }
            for (i64 i = 0; i < D * F; ++i) narrow(sum[i], dw[e * D * F + i]);
        }
    }
}
#endif

}  // extern "C"
