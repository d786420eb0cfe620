// Causal attention of whole sequences, a block of queries after the other: scores never leave the cache.

#include "gemm.h"

namespace {

constexpr i64 QUERIES = 64;       // of a block
constexpr float HIDDEN = -1e30f;  // score of a position that lies ahead: its exponential is 0

// What is kept of one head's keys and values for all blocks of queries, and room for one block's scores.
template <class P>
struct Scores {
    i64 T, K, ld;
    std::unique_ptr<P[]> keys, queries, share;
    std::unique_ptr<float[]> score;

    Scores(i64 T, i64 K)
        : T(T), K(K), ld(rounded(T)), keys(room<P>(Packed<P>{K, T}.size())), queries(room<P>(QUERIES * deep<P>(K))),
          share(room<P>(QUERIES * ld)), score(room<float>(QUERIES * ld)) {}

    // scores (rows, n) of queries [first, first + rows), unscaled.
    template <class X>
    void multiply(const X* q, i64 first, i64 rows, const P* turned, float* out) {
        gather(rows, K, [&](i64 i) { return q + (first + i) * K; }, queries.get());
        gemm(made_for<P>(rows), first + rows, K, queries.get(), deep<P>(K), turned, Packed<P>{K, T}, out, ld, false);
    }
};

// q, k, v and out are (heads, T, K); lse (heads, T) is the logarithm of each query's sum of exponentials.
template <class P, class X>
void attention(const X* q, const X* k, const X* v, i64 heads, i64 T, i64 K, float scale, X* out, float* lse, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Scores<P> block(T, K);
        const auto values = room<P>(Packed<P>{T, K}.size());
        const auto sum = room<float>(QUERIES * K);
#pragma omp for schedule(dynamic)
        for (i64 head = 0; head < heads; ++head) {
            const i64 at = head * T * K;
            pack_transposed<P>(K, T, k + at, block.keys.get());
            pack<P>(T, K, [&](i64 t) { return v + at + t * K; }, values.get());
            for (i64 first = 0; first < T; first += QUERIES) {
                const i64 rows = std::min(QUERIES, T - first), n = first + rows;
                block.multiply(q + at, first, rows, block.keys.get(), block.score.get());
                float inverse[QUERIES];
                for (i64 i = 0; i < rows; ++i) {
                    const i64 seen = first + i + 1, whole = rounded(seen);  // in whole vectors
                    float *__restrict score = block.score.get() + i * block.ld, total = 0;
                    P* __restrict share = block.share.get() + i * block.ld;
                    std::fill(score + seen, score + whole, HIDDEN);
                    const float largest = largest_of(score, whole);
#pragma omp simd reduction(+ : total)
                    for (i64 j = 0; j < whole; ++j) total += score[j] = exp_nonpositive(scale * (score[j] - largest));
#pragma omp simd
                    for (i64 j = 0; j < whole; ++j) narrow(score[j], share[j]);
                    if (whole < n) std::fill(share + whole, share + deep<P>(n), P(0));
                    inverse[i] = 1 / total;
                    lse[head * T + first + i] = scale * largest + std::log(total);
                }
                gemm(made_for<P>(rows), K, n, block.share.get(), block.ld, values.get(), Packed<P>{T, K}, sum.get(), K, false);
                for (i64 i = 0; i < rows; ++i)
                    for (i64 j = 0; j < K; ++j) narrow(sum[i * K + j] * inverse[i], out[at + (first + i) * K + j]);
            }
        }
        gemm_done(block.keys.get());
    }
}

template <class P, class X>
void attention_backward(const X* q, const X* k, const X* v, const X* out, const float* lse, const X* d_out, i64 heads, i64 T,
                        i64 K, float scale, X* dq, X* dk, X* dv, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Scores<P> block(T, K);
        const auto values = room<P>(Packed<P>{K, T}.size()), key_rows = room<P>(Packed<P>{T, K}.size());
        const auto d_score = room<P>(QUERIES * block.ld), turned = room<P>(QUERIES * block.ld), right = room<P>(Packed<P>{QUERIES, K}.size());
        const auto d_share = room<float>(QUERIES * block.ld), d_query = room<float>(QUERIES * K);
        const std::vector<X> zeros(K);
        std::vector<float> sums(2 * T * K);
        float *d_key = sums.data(), *d_value = d_key + T * K;
#pragma omp for schedule(dynamic)
        for (i64 head = 0; head < heads; ++head) {
            const i64 at = head * T * K;
            pack_transposed<P>(K, T, k + at, block.keys.get());
            pack_transposed<P>(K, T, v + at, values.get());
            pack<P>(T, K, [&](i64 t) { return k + at + t * K; }, key_rows.get());
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (i64 first = 0; first < T; first += QUERIES) {
                const i64 rows = std::min(QUERIES, T - first), n = first + rows;
                block.multiply(q + at, first, rows, block.keys.get(), block.score.get());
                block.multiply(d_out + at, first, rows, values.get(), d_share.get());
                for (i64 i = 0; i < rows; ++i) {
                    const i64 seen = first + i + 1, whole = rounded(seen), row = at + (first + i) * K;
                    float along = 0;
#pragma omp simd reduction(+ : along)
                    for (i64 j = 0; j < K; ++j) along += widen(out[row + j]) * widen(d_out[row + j]);
                    const float level = lse[head * T + first + i];
                    float *__restrict score = block.score.get() + i * block.ld, *__restrict above = d_share.get() + i * block.ld;
                    P *__restrict share = block.share.get() + i * block.ld, *__restrict to = d_score.get() + i * block.ld;
                    std::fill(score + seen, score + whole, HIDDEN);
                    std::fill(above + seen, above + whole, 0.0f);
#pragma omp simd
                    for (i64 j = 0; j < whole; ++j) {
                        const float p = exp_nonpositive(std::min(0.0f, scale * score[j] - level));
                        narrow(p, share[j]);
                        narrow(p * (above[j] - along) * scale, to[j]);
                    }
                    if (whole < n) std::fill(share + whole, share + deep<P>(n), P(0)), std::fill(to + whole, to + deep<P>(n), P(0));
                }
                for (i64 i = rows; i < rounded(rows); ++i) {
                    std::fill(block.share.get() + i * block.ld, block.share.get() + i * block.ld + n, P(0));
                    std::fill(d_score.get() + i * block.ld, d_score.get() + i * block.ld + n, P(0));
                }
                gemm(made_for<P>(rows), K, n, d_score.get(), block.ld, key_rows.get(), Packed<P>{T, K}, d_query.get(), K, false);
                for (i64 i = 0; i < rows * K; ++i) narrow(d_query[i], dq[at + first * K + i]);
                const auto add = [&](const P* left, const X* x, float* to) {  // to (n, K) += left (rows, n) transposed . x
                    transpose(rounded(rows), n, left, block.ld, turned.get(), QUERIES);
                    pack<P>(rounded(rows), K, [&](i64 i) { return i < rows ? x + at + (first + i) * K : zeros.data(); }, right.get());
                    gemm(n, K, rounded(rows), turned.get(), QUERIES, right.get(), Packed<P>{rounded(rows), K}, to, K, true);
                };
                add(d_score.get(), q, d_key);
                add(block.share.get(), d_out, d_value);
            }
            for (i64 i = 0; i < T * K; ++i) narrow(d_key[i], dk[at + i]), narrow(d_value[i], dv[at + i]);
        }
        gemm_done(block.keys.get());
    }
}

}  // namespace

extern "C" {

void attention_bf16(const bf16* q, const bf16* k, const bf16* v, i64 heads, i64 T, i64 K, float scale, bf16* out, float* lse,
                    int threads) {
    attention<Half>(q, k, v, heads, T, K, scale, out, lse, threads);
}
void attention_backward_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const float* lse, const bf16* d_out,
                             i64 heads, i64 T, i64 K, float scale, bf16* dq, bf16* dk, bf16* dv, int threads) {
    attention_backward<Half>(q, k, v, out, lse, d_out, heads, T, K, scale, dq, dk, dv, threads);
}

}  // extern "C"
