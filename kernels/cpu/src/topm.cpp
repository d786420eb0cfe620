// Exact top-m of a product or Tucker grid: a threshold search over integers that compare as the scores do.

#include "common.h"

namespace {

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
#ifdef __AVX512F__  // at::vec has no compress, without which a selection takes a sixth longer
    const __m512i bounds = _mm512_set1_epi32(bound), step = _mm512_set1_epi32(16);
    __m512i counter = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16) {
        const __m512i block = _mm512_loadu_si512(key + i);
        if (const __mmask16 kept = _mm512_cmpge_epi32_mask(block, bounds)) {
            const __m512i where = position ? _mm512_loadu_si512(position + i) : counter;
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

}  // namespace

extern "C" {

// Positions of the m largest of each row of x (T, n), best first.
void topm(const float* x, i64 T, i64 n, i64 m, i64* index, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Selector selector;
        std::vector<i32> key(n);
#pragma omp for
        for (i64 t = 0; t < T; ++t) {
            for (i64 i = 0; i < n; ++i) key[i] = key_of(x[t * n + i]);
            const u64* best = selector.best(key.data(), int(n), int(m), identity);
            for (i64 i = 0; i < m; ++i) index[t * m + i] = packed_id(best[i]);
        }
    }
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

}  // extern "C"
