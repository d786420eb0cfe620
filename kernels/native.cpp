// C++ twins of kernels/reference.py for CPU tensors: plain C ABI, no torch headers, compiled at first use by native.py.
//
// Letters: T tokens, H heads, n keys per axis, m picks per head, r Tucker rank, h cores, M picks per token, N table rows,
// C value width, c = C/h, G groups, S sorted rows, E experts, D in, F out, K chunk rows, V vocabulary.
// Every sum is float32. Results do not depend on the number of threads, except d_core of tucker_topm_backward, which is
// added up in thread order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE 1
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

using i32 = int32_t;
using i64 = int64_t;
using u64 = uint64_t;

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void narrow(float x, float& y) { y = x; }
inline void narrow(float x, bf16& y) {  // round to nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    y.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// ---- selection ------------------------------------------------------------------------------------------------------

// Integers that compare as the floats do. Adding 0 turns -0 into +0, which must tie; every NaN is the largest, as in torch.
inline i32 key_of(float x) {
    x += 0.0f;
    i32 bits;
    std::memcpy(&bits, &x, 4);
    return x != x ? 0x7fc00000 : bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float float_of(i32 key) {
    i32 bits = key ^ ((key >> 31) & 0x7fffffff);
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline int count_ge(const i32* key, int n, i32 bound) {
    int count = 0;
    for (int i = 0; i < n; ++i) count += key[i] >= bound;
    return count;
}

// A bound that at least k of the keys reach, and exactly k unless the k-th largest is tied.
i32 bound_of(const i32* key, int n, int k) {
    i32 low = key[0], high = key[0];
    for (int i = 1; i < n; ++i) low = std::min(low, key[i]), high = std::max(high, key[i]);
    while (low < high) {
        i32 middle = i32(low + (i64(high) - low + 1) / 2);
        int count = count_ge(key, n, middle);
        if (count == k) return middle;
        if (count > k) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Keys that reach the bound and their positions, in order. The outputs need 16 spare places.
int compress_ge(const i32* key, const i32* position, int n, i32 bound, i32* out_key, i32* out_position) {
    int count = 0, i = 0;
#ifdef WIDE
    const __m512i bound16 = _mm512_set1_epi32(bound), step = _mm512_set1_epi32(16);
    __m512i counter = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16) {
        __m512i block = _mm512_loadu_si512(key + i);
        __mmask16 kept = _mm512_cmpge_epi32_mask(block, bound16);
        if (kept) {
            __m512i where = position ? _mm512_loadu_si512(position + i) : counter;
            _mm512_storeu_si512(out_key + count, _mm512_maskz_compress_epi32(kept, block));
            _mm512_storeu_si512(out_position + count, _mm512_maskz_compress_epi32(kept, where));
            count += __builtin_popcount(kept);
        }
        counter = _mm512_add_epi32(counter, step);
    }
#endif
    for (; i < n; ++i) {
        out_key[count] = key[i];
        out_position[count] = position ? position[i] : i;
        count += key[i] >= bound;
    }
    return count;
}

struct Selector {
    std::vector<i32> top, key_a, place_a, key_b, place_b;
    std::vector<u64> packed, sorted;

    // The k best of n keys by (key, then lowest id): packed (key, ~id), best first. `id(position)` names a candidate.
    template <class Id>
    const u64* best(const i32* key, int n, int k, Id id) {
        grow(n + 16);
        const i32* kept_key = key;
        const i32* kept_place = nullptr;
        int kept = n;
        // The k-th best of the maxima of disjoint classes is a lower bound of the k-th best of all.
        const int classes = (2 * k + 15) / 16 * 16;
        if (n >= 2 * classes) {
            top.assign(key, key + classes);
            int i = classes;
            for (; i + classes <= n; i += classes)
                for (int j = 0; j < classes; ++j) top[j] = std::max(top[j], key[i + j]);
            for (int j = 0; i + j < n; ++j) top[j] = std::max(top[j], key[i + j]);
            kept = compress_ge(key, nullptr, n, bound_of(top.data(), classes, k), key_a.data(), place_a.data());
            kept_key = key_a.data(), kept_place = place_a.data();
        }
        i32 bound = kept > k ? bound_of(kept_key, kept, k) : std::numeric_limits<i32>::min();
        int count = compress_ge(kept_key, kept_place, kept, bound, key_b.data(), place_b.data());
        for (int i = 0; i < count; ++i)
            packed[i] = u64(uint32_t(key_b[i]) ^ 0x80000000u) << 32 | (0xffffffffu - uint32_t(id(place_b[i])));
        if (count > 160) {
            std::partial_sort(packed.begin(), packed.begin() + k, packed.begin() + count, std::greater<u64>());
            return packed.data();
        }
        for (int i = 0; i < count; ++i) {  // ids differ, so the number of better ones is a place of its own
            i64 better = 0;
            for (int j = 0; j < count; ++j) better += packed[j] > packed[i];
            sorted[better] = packed[i];
        }
        return sorted.data();
    }

    void grow(size_t size) {
        if (key_a.size() >= size) return;
        for (auto* buffer : {&key_a, &place_a, &key_b, &place_b}) buffer->resize(size);
        packed.resize(size), sorted.resize(size);
    }
};

inline i32 packed_key(u64 packed) { return i32(uint32_t(packed >> 32) ^ 0x80000000u); }
inline uint32_t packed_id(u64 packed) { return 0xffffffffu - uint32_t(packed); }
inline int identity(int i) { return i; }

// ---- table reads ----------------------------------------------------------------------------------------------------

bool out_of_range(const i64* index, i64 count, i64 limit) {
    u64 largest = 0;
    for (i64 i = 0; i < count; ++i) largest = std::max(largest, u64(index[i]));
    return count && largest >= u64(limit);
}

inline void prefetch(const void* start, i64 bytes) {
    for (i64 byte = 0; byte < bytes; byte += 64) __builtin_prefetch(static_cast<const char*>(start) + byte);
}

constexpr i64 AHEAD = 16;  // picks whose rows are fetched in advance

template <class X>
inline void add_scaled(float* __restrict out, const X* __restrict x, float scale, i64 count) {
#pragma omp simd
    for (i64 i = 0; i < count; ++i) out[i] += scale * widen(x[i]);
}

template <class X>
inline float dot(const X* __restrict x, const float* __restrict y, i64 count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; ++i) sum += widen(x[i]) * y[i];
    return sum;
}

#ifdef WIDE
inline __m512 load16(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
inline __m512 load16(const bf16* x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

// out = sum of weight * row over `count` rows, W vectors wide, summed in registers. `known` row numbers may be read ahead.
template <int W, class X>
void sum_block(const X* values, i64 C, const i64* row, const float* weight, i64 h, i64 count, i64 known, __mmask16 last,
               float* out) {
    __m512 sum[W];
    for (int j = 0; j < W; ++j) sum[j] = _mm512_setzero_ps();
    for (i64 p = 0; p < count; ++p) {
        if (p + AHEAD < known) prefetch(values + row[p + AHEAD] * C, W * 16 * i64(sizeof(X)));
        const X* from = values + row[p] * C;
        const __m512 scale = _mm512_set1_ps(weight[p * h]);
        for (int j = 0; j < W; ++j)
            sum[j] = _mm512_fmadd_ps(scale, load16(from + 16 * j, j + 1 < W ? __mmask16(0xffff) : last), sum[j]);
    }
    for (int j = 0; j < W; ++j) _mm512_mask_storeu_ps(out + 16 * j, j + 1 < W ? __mmask16(0xffff) : last, sum[j]);
}
#endif

// out (C) = sum over `count` picks of weight (count, h), slice by slice, times the row.
template <class X>
void sum_rows(const X* values, i64 C, const i64* row, const float* weight, i64 h, i64 count, i64 known, float* out) {
    const i64 c = C / h;
#ifdef WIDE
    for (i64 k = 0; k < h; ++k)
        for (i64 j = 0; j < c;) {
            const i64 left = (c - j + 15) / 16;
            const i64 vectors = left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const __mmask16 last = vectors * 16 <= c - j ? 0xffff : __mmask16(0xffffu >> (vectors * 16 - (c - j)));
            const auto run = vectors == 16  ? sum_block<16, X>
                             : vectors == 8 ? sum_block<8, X>
                             : vectors == 4 ? sum_block<4, X>
                             : vectors == 2 ? sum_block<2, X>
                                            : sum_block<1, X>;
            run(values + k * c + j, C, row, weight + k, h, count, known, last, out + k * c + j);
            j += vectors * 16;
        }
#else
    std::fill(out, out + C, 0.0f);
    for (i64 p = 0; p < count; ++p) {
        if (p + AHEAD < known) prefetch(values + row[p + AHEAD] * C, C * i64(sizeof(X)));
        for (i64 k = 0; k < h; ++k) add_scaled(out + k * c, values + row[p] * C + k * c, weight[p * h + k], c);
    }
#endif
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

// ---- softmax and cross-entropy --------------------------------------------------------------------------------------

// exp for x <= 0 to about 1 ulp: 2^round(x/ln2) times a degree-7 polynomial (Cephes expf); below -87 it is 0.
inline float exp_nonpositive(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(y) in the low bits
    float shifted = x * 1.44269504f + magic;
    float whole = shifted - magic;
    float rest = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
    float y = 1.9875691e-4f;
    y = y * rest + 1.3981999e-3f;
    y = y * rest + 8.3334519e-3f;
    y = y * rest + 4.1665796e-2f;
    y = y * rest + 1.6666665e-1f;
    y = y * rest + 5.0000001e-1f;
    y = y * rest * rest + rest + 1.0f;
    i32 bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : y * power;
}

// Per row: loss and, in place of the logits, the gradient of scale * loss. Ignored rows (target < 0) give zeros.
template <class X>
void softmax_step(X* logits, const i64* target, i64 K, i64 V, float scale, float* loss, int need_grad, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> buffer(V);
        float* __restrict power = buffer.data();
#pragma omp for
        for (i64 k = 0; k < K; ++k) {
            X* __restrict x = logits + k * V;
            if (target[k] < 0) {
                loss[k] = 0;
                if (need_grad) std::memset(x, 0, V * sizeof(X));
                continue;
            }
            float largest = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : largest)
            for (i64 v = 0; v < V; ++v) largest = std::max(largest, widen(x[v]));
            const float hit = widen(x[target[k]]);
#pragma omp simd reduction(+ : sum)
            for (i64 v = 0; v < V; ++v) sum += power[v] = exp_nonpositive(widen(x[v]) - largest);
            loss[k] = largest + std::log(sum) - hit;
            if (!need_grad) continue;
            const float factor = scale / sum;
            const float at_target = power[target[k]] * factor - scale;
#pragma omp simd
            for (i64 v = 0; v < V; ++v) narrow(power[v] * factor, x[v]);
            narrow(at_target, x[target[k]]);
        }
    }
}

// ---- grouped matrix product -----------------------------------------------------------------------------------------

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

// ---- RMS norm: torch's is eight operations on a CPU

template <class X>
void rms_norm(const X* x, const X* weight, i64 rows, i64 width, float eps, X* y) {
    for (i64 i = 0; i < rows; ++i, x += width, y += width) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 j = 0; j < width; ++j) sum += widen(x[j]) * widen(x[j]);
        const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
#pragma omp simd
        for (i64 j = 0; j < width; ++j) narrow(widen(x[j]) * scale * widen(weight[j]), y[j]);
    }
}

// ---- x W^T for few rows: weights lie as nn.Linear stores them, are read once from memory, and no copy of them is packed

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

void product_topm(const float* row, i64 row_t, i64 row_h, const float* col, i64 col_t, i64 col_h, i64 T, i64 H, i64 n,
                  i64 m, float* score, i64* index, int threads) {
    const int k = int(std::min(m, n));
    i64 cells = 0;
    for (i64 a = 0; a < k; ++a) cells += std::min<i64>(m / (a + 1), k);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Selector selector;
        std::vector<i32> key(std::max(n, cells));
        std::vector<uint32_t> cell(cells), row_id(k), col_id(k);
        std::vector<float> row_value(k), col_value(k);
        auto side = [&](const float* x, float* value, uint32_t* id) {
            for (i64 i = 0; i < n; ++i) key[i] = key_of(x[i]);
            const u64* best = selector.best(key.data(), int(n), k, identity);
            for (int i = 0; i < k; ++i) value[i] = float_of(packed_key(best[i])), id[i] = packed_id(best[i]);
        };
#pragma omp for
        for (i64 th = 0; th < T * H; ++th) {
            const i64 t = th / H, head = th % H;
            side(row + t * row_t + head * row_h, row_value.data(), row_id.data());
            side(col + t * col_t + head * col_h, col_value.data(), col_id.data());
            i64 p = 0;
            for (i64 a = 0; a < k; ++a)  // a cell is dominated by (a+1)(b+1)-1 others, so only these can be in the top m
                for (i64 b = 0, end = std::min<i64>(m / (a + 1), k); b < end; ++b, ++p) {
                    key[p] = key_of(row_value[a] + col_value[b]);
                    cell[p] = row_id[a] * uint32_t(n) + col_id[b];
                }
            const u64* best = selector.best(key.data(), int(p), int(m), [&](int q) { return cell[q]; });
            for (i64 i = 0; i < m; ++i)
                score[th * m + i] = float_of(packed_key(best[i])), index[th * m + i] = packed_id(best[i]);
        }
    }
}

void product_topm_backward(const float* d_score, const i64* index, i64 TH, i64 n, i64 m, float* d_row, float* d_col,
                           int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 th = 0; th < TH; ++th)
        for (i64 p = th * m; p < (th + 1) * m; ++p) {
            const uint32_t cell = uint32_t(index[p]), i = cell / uint32_t(n);
            d_row[th * n + i] += d_score[p];
            d_col[th * n + (cell - i * uint32_t(n))] += d_score[p];
        }
}

// Strides of row and col: token, head, key, rank.
void tucker_topm(const float* row, const i64* row_stride, const float* col, const i64* col_stride, const float* core,
                 const float* u, const float* t_vector, i64 T, i64 H, i64 n, i64 r, i64 h, i64 m, float* score, i64* index,
                 int threads) {
    const int k = int(std::min(m, n));
    std::vector<float> core_sum(H * r * r);
    for (i64 i = 0; i < h * H * r * r; ++i) core_sum[i % (H * r * r)] += core[i];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Selector selector;
        std::vector<i32> key(std::max<i64>(n, i64(k) * k)), row_id(k), col_id(k);
        std::vector<float> filter(n), cross(k), row_kr(k * r), col_rk(r * k), mixed(r);
        auto side = [&](const float* x, const i64* stride, const float* direction, i32* id) {
            std::fill(filter.begin(), filter.end(), 0.0f);
            for (i64 s = 0; s < r; ++s) {
                const float* from = x + s * stride[3];
                const float scale = direction[s];
                if (stride[2] == 1)
                    for (i64 i = 0; i < n; ++i) filter[i] += scale * from[i];
                else
                    for (i64 i = 0; i < n; ++i) filter[i] += scale * from[i * stride[2]];
            }
            for (i64 i = 0; i < n; ++i) key[i] = key_of(filter[i]);
            const u64* best = selector.best(key.data(), int(n), k, identity);
            for (int i = 0; i < k; ++i) id[i] = i32(packed_id(best[i]));
        };
#pragma omp for
        for (i64 th = 0; th < T * H; ++th) {
            const i64 token = th / H, head = th % H;
            const float* row_nr = row + token * row_stride[0] + head * row_stride[1];
            const float* col_nr = col + token * col_stride[0] + head * col_stride[1];
            side(row_nr, row_stride, u + head * r, row_id.data());
            side(col_nr, col_stride, t_vector + head * r, col_id.data());
            for (int a = 0; a < k; ++a)
                for (i64 s = 0; s < r; ++s) {
                    row_kr[a * r + s] = row_nr[row_id[a] * row_stride[2] + s * row_stride[3]];
                    col_rk[s * k + a] = col_nr[col_id[a] * col_stride[2] + s * col_stride[3]];
                }
            const float* core_rr = core_sum.data() + head * r * r;
            for (int a = 0; a < k; ++a) {
                for (i64 s = 0; s < r; ++s) {
                    mixed[s] = 0;
                    for (i64 q = 0; q < r; ++q) mixed[s] += row_kr[a * r + q] * core_rr[q * r + s];
                }
                i32* __restrict to = key.data() + a * k;
                if (r == 2) {
                    const float left = mixed[0], right = mixed[1];
                    const float *first = col_rk.data(), *second = first + k;
                    for (int b = 0; b < k; ++b) to[b] = key_of(left * first[b] + right * second[b]);
                    continue;
                }
                std::fill(cross.begin(), cross.end(), 0.0f);
                for (i64 s = 0; s < r; ++s) add_scaled(cross.data(), col_rk.data() + s * k, mixed[s], k);
                for (int b = 0; b < k; ++b) to[b] = key_of(cross[b]);
            }
            const u64* best = selector.best(key.data(), k * k, int(m), [&](int p) {
                return uint32_t(row_id[p / k]) * uint32_t(n) + uint32_t(col_id[p % k]);
            });
            for (i64 p = 0; p < m; ++p) {
                const i64 cell = packed_id(best[p]);
                const float* row_r = row_nr + cell / n * row_stride[2];
                const float* col_r = col_nr + cell % n * col_stride[2];
                index[th * m + p] = cell;
                for (i64 c = 0; c < h; ++c) {
                    float sum = 0;
                    for (i64 q = 0; q < r; ++q)
                        for (i64 s = 0; s < r; ++s)
                            sum += row_r[q * row_stride[3]] * col_r[s * col_stride[3]] *
                                   core[((c * H + head) * r + q) * r + s];
                    score[(th * m + p) * h + c] = sum;
                }
            }
        }
    }
}

// d_row and d_col arrive zeroed, with strides of their own; d_core (h, H, r, r) arrives zeroed.
void tucker_topm_backward(const float* row, const i64* row_stride, const float* col, const i64* col_stride,
                          const float* core, const float* d_score, const i64* index, i64 T, i64 H, i64 n, i64 r, i64 h,
                          i64 m, float* d_row, const i64* d_row_stride, float* d_col, const i64* d_col_stride,
                          float* d_core, int threads) {
    const i64 size = h * H * r * r;
    std::vector<float> partial(threads * size);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float* mine = partial.data() + omp_get_thread_num() * size;
#pragma omp for schedule(static)
        for (i64 th = 0; th < T * H; ++th) {
            const i64 token = th / H, head = th % H;
            for (i64 p = th * m; p < (th + 1) * m; ++p) {
                const i64 i = index[p] / n, j = index[p] % n;
                const float* row_r = row + token * row_stride[0] + head * row_stride[1] + i * row_stride[2];
                const float* col_r = col + token * col_stride[0] + head * col_stride[1] + j * col_stride[2];
                float* d_row_r = d_row + token * d_row_stride[0] + head * d_row_stride[1] + i * d_row_stride[2];
                float* d_col_r = d_col + token * d_col_stride[0] + head * d_col_stride[1] + j * d_col_stride[2];
                for (i64 c = 0; c < h; ++c) {
                    const float g = d_score[p * h + c];
                    const i64 base = (c * H + head) * r * r;
                    for (i64 q = 0; q < r; ++q)
                        for (i64 s = 0; s < r; ++s) {
                            const float x = row_r[q * row_stride[3]], y = col_r[s * col_stride[3]];
                            const float w = core[base + q * r + s];
                            d_row_r[q * d_row_stride[3]] += g * w * y;
                            d_col_r[s * d_col_stride[3]] += g * w * x;
                            mine[base + q * r + s] += g * x * y;
                        }
                }
            }
        }
    }
    for (i64 i = 0; i < threads * size; ++i) d_core[i % size] += partial[i];
}

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
    }                                                                                                                      \
    void rms_norm_##suffix(const X* x, const X* weight, i64 rows, i64 width, float eps, X* y, int) {                       \
        rms_norm(x, weight, rows, width, eps, y);                                                                          \
    }                                                                                                                      \
    void softmax_step_##suffix(X* logits, const i64* target, i64 K, i64 V, float scale, float* loss, int need_grad,        \
                               int threads) {                                                                              \
        softmax_step(logits, target, K, V, scale, loss, need_grad, threads);                                               \
    }
TABLE_OPS(float, f32)
TABLE_OPS(bf16, bf16)

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
