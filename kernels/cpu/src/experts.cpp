// A mixture of experts in one pass: tokens are gathered by expert in blocks that stay in the cache through both products, so
// that no array of a row per pick goes to memory but what the backward pass needs.

#include "gemm.h"

namespace {

template <class P>
constexpr i64 BLOCK = GROUP<P> == 1 ? 512 : 96;  // rows of one expert that go through both products together
constexpr i64 FEW = 12;    // rows of one expert up to which its weights are multiplied where they lie
constexpr i64 DEPTH = 16;  // rows of these that are read side by side, each from its start to its end
template <class P>
constexpr i64 STRIP = GROUP<P> == 1 ? 512 : 256;  // rows of one expert that its weight gradients take at a time

// Slots (token * k + j) sorted by expert, tokens in order, and where each expert starts.
struct Sorted {
    std::vector<i64> start, slot;
    Sorted(const i64* expert, i64 S, i64 E) : start(E + 1), slot(S) {
        for (i64 s = 0; s < S; ++s) ++start[expert[s] + 1];
        for (i64 e = 0; e < E; ++e) start[e + 1] += start[e];
        std::vector<i64> next(start.begin(), start.end() - 1);
        for (i64 s = 0; s < S; ++s) slot[next[expert[s]]++] = s;
    }
    // Places of expert e whose slots lie in [first, last).
    std::pair<i64, i64> within(i64 e, i64 first, i64 last) const {
        const auto begin = slot.begin(), low = begin + start[e], high = begin + start[e + 1];
        return {std::lower_bound(low, high, first) - begin, std::lower_bound(low, high, last) - begin};
    }
};

// Whether weights (.., U) and (.., D) of type W can be read as a tile of P reads them.
template <class P, class W>
constexpr bool whole_vectors(i64 U, i64 D) { return std::is_same_v<P, float> && std::is_same_v<W, float> && U % LANES == 0 && D % LANES == 0; }

// Of a GELU: the normal distribution's share below h.
inline void normal_below(const float* h, i64 F, float* out) {
    for (i64 i = 0; i < F; i += LANES) {
        const i64 count = std::min(LANES, F - i);
        const Vec half(0.5f), root(0.70710678f);
        store(at::vec::fmadd((load(h + i, count) * root).erf(), half, half), out + i, count);
    }
}

// h is (rows, 2F), gate beside up, or (rows, F).
template <class P>
inline void activate(const float* h, i64 F, i64 glu, float* below, P* out) {
    if (!glu) normal_below(h, F, below);
#pragma omp simd
    for (i64 i = 0; i < F; ++i) narrow(glu ? h[i] * sigmoid(h[i]) * h[F + i] : h[i] * below[i], out[i]);
}

// dh from h and the gradient of the activation; `out` is the activation itself.
inline void activate_backward(const float* h, const float* d_out, i64 F, i64 glu, float* out, float* dh) {
    if (glu) {
#pragma omp simd
        for (i64 i = 0; i < F; ++i) {
            const float s = sigmoid(h[i]), silu = h[i] * s;
            out[i] = silu * h[F + i];
            dh[i] = d_out[i] * h[F + i] * (s + silu * (1.0f - s));
            dh[F + i] = d_out[i] * silu;
        }
    } else {
        normal_below(h, F, out);
#pragma omp simd
        for (i64 i = 0; i < F; ++i) {
            dh[i] = d_out[i] * (out[i] + h[i] * 0.39894228f * exp_nonpositive(-0.5f * h[i] * h[i]));
            out[i] *= h[i];
        }
    }
}

// y (T, D) = sum over the k picks of a token of weight * expert; h (S, U), U = 2F or F, sorted by expert, is kept if not null.
// Every thread takes tokens of its own through all experts: a token's sum is in order of experts, whatever the threads.
template <class P, class X, class W>
void experts(const X* x, const W* up, const W* down, const i64* expert, const float* weight, i64 T, i64 k, i64 E, i64 D, i64 F,
             i64 glu, X* y, X* h, int threads) {
    const i64 U = glu ? 2 * F : F, deep_d = deep<P>(D), deep_f = deep<P>(F), range = (T + threads - 1) / threads;
    const Sorted sorted(expert, T * k, E);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 first = 0; first < T; first += range) {
        const i64 last = std::min(T, first + range);
        const auto up_packed = room<P>(Packed<P>{D, U}.size()), down_packed = room<P>(Packed<P>{F, D}.size());
        const auto in = room<P>(BLOCK<P> * deep_d), active = room<P>(BLOCK<P> * deep_f);
        const auto inner = room<float>(BLOCK<P> * U), outer = room<float>(BLOCK<P> * D), below = room<float>(F);
        std::fill(active.get(), active.get() + BLOCK<P> * deep_f, P(0));
        std::vector<float> sum((last - first) * D);
        for (i64 e = 0; e < E; ++e) {
            const auto [low, high] = sorted.within(e, first * k, last * k);
            if (low == high) continue;
            const W *up_rows = up + e * D * U, *down_rows = down + e * F * D;
            const bool few = high - low <= FEW && whole_vectors<P, W>(U, D);
            const auto up_right = few ? Right<P>() : right<P>(D, U, up_rows, up_packed.get());
            const auto down_right = few ? Right<P>() : right<P>(F, D, down_rows, down_packed.get());
            const auto multiply = [&](i64 rows, i64 N, i64 K, const P* left, const W* where, const Right<P>& right, float* out) {
                if constexpr (whole_vectors<P, W>(0, 0))
                    if (few) {
                        for (i64 k = 0; k < K; k += DEPTH)
                            gemm(rows, N, std::min(DEPTH, K - k), left + k, K, where + k * N, N, out, N, k > 0);
                        return;
                    }
                product(made_for<P>(rows), N, K, left, deep<P>(K), right, out, N);
            };
            for (i64 place = low; place < high; place += BLOCK<P>) {
                const i64 rows = std::min(BLOCK<P>, high - place);
                const i64* slot = sorted.slot.data() + place;
                gather(rows, D, [&](i64 i) { return x + slot[i] / k * D; }, in.get());
                multiply(rows, U, D, in.get(), up_rows, up_right, inner.get());
                if (h)
#pragma omp simd
                    for (i64 i = 0; i < rows * U; ++i) narrow(inner[i], h[place * U + i]);
                for (i64 i = 0; i < rows; ++i)
                    activate(inner.get() + i * U, F, glu, below.get(), active.get() + i * deep_f);
                multiply(rows, D, F, active.get(), down_rows, down_right, outer.get());
                for (i64 i = 0; i < rows; ++i)
                    add_scaled(sum.data() + (slot[i] / k - first) * D, outer.get() + i * D, weight[slot[i]], D);
            }
        }
        for (i64 i = 0; i < (last - first) * D; ++i) narrow(sum[i], y[first * D + i]);
        gemm_done(in.get());
    }
}

// Gradients of all inputs; those of the weights are float32 sums over rows in order, one expert after the other.
template <class P, class X>
void experts_backward(const X* x, const float* up, const float* down, const i64* expert, const float* weight, const X* h, const X* dy,
                      i64 T, i64 k, i64 E, i64 D, i64 F, i64 glu, X* dx, float* d_up, float* d_down, float* d_weight,
                      int threads) {
    const i64 U = glu ? 2 * F : F, S = T * k, deep_d = deep<P>(D), deep_u = deep<P>(U), range = (T + threads - 1) / threads;
    const Sorted sorted(expert, S, E);
    const auto active = room<P>(S * F), d_inner = room<P>(S * deep_u);  // of every slot, weighted, sorted by expert
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 first = 0; first < T; first += range) {
        const i64 last = std::min(T, first + range);
        const auto up_packed = room<P>(Packed<P>{U, D}.size()), down_packed = room<P>(Packed<P>{D, F}.size());
        const auto out = room<P>(BLOCK<P> * deep_d), d_block = room<P>(BLOCK<P> * deep_u);
        const auto inner = room<float>(U), d_active = room<float>(BLOCK<P> * F), act = room<float>(F), dh = room<float>(U);
        const auto d_in = room<float>(BLOCK<P> * D);
        std::vector<float> sum((last - first) * D);
        for (i64 e = 0; e < E; ++e) {
            const auto [low, high] = sorted.within(e, first * k, last * k);
            if (low == high) continue;
            const auto up_turned = right_turned<P>(U, D, up + e * D * U, up_packed.get());
            const auto down_turned = right_turned<P>(D, F, down + e * F * D, down_packed.get());
            for (i64 place = low; place < high; place += BLOCK<P>) {
                const i64 rows = std::min(BLOCK<P>, high - place);
                const i64* slot = sorted.slot.data() + place;
                gather(rows, D, [&](i64 i) { return dy + slot[i] / k * D; }, out.get());
                product(made_for<P>(rows), F, D, out.get(), deep_d, down_turned, d_active.get(), F);
                for (i64 i = 0; i < rows; ++i) {
                    const X* from = h + (place + i) * U;
                    const float scale = weight[slot[i]];
#pragma omp simd
                    for (i64 u = 0; u < U; ++u) inner[u] = widen(from[u]);
                    activate_backward(inner.get(), d_active.get() + i * F, F, glu, act.get(), dh.get());
                    d_weight[slot[i]] = dot(act.get(), d_active.get() + i * F, F);
                    P *a = active.get() + (place + i) * F, *d = d_block.get() + i * deep_u;
#pragma omp simd
                    for (i64 f = 0; f < F; ++f) narrow(scale * act[f], a[f]);
#pragma omp simd
                    for (i64 u = 0; u < U; ++u) narrow(scale * dh[u], d[u]);
                    for (i64 u = U; u < deep_u; ++u) narrow(0, d[u]);
                }
                std::memcpy(d_inner.get() + place * deep_u, d_block.get(), rows * deep_u * sizeof(P));
                product(made_for<P>(rows), D, U, d_block.get(), deep_u, up_turned, d_in.get(), D);
                for (i64 i = 0; i < rows; ++i)
                    add_scaled(sum.data() + (slot[i] / k - first) * D, d_in.get() + i * D, 1, D);
            }
        }
        for (i64 i = 0; i < (last - first) * D; ++i) narrow(sum[i], dx[first * D + i]);
        gemm_done(out.get());
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const i64 widest = std::max({U, D, F});
        const auto rows_left = room<P>(STRIP<P> * deep<P>(widest)), left = room<P>(STRIP<P> * widest),
                   right = room<P>(Packed<P>{STRIP<P>, widest}.size());
        const std::vector<P> zeros(U);
        const std::vector<X> none(D);
        // out (M, N) = sum over rows of left x right, onto what is there if `more`.
        const auto add = [&](i64 M, i64 N, i64 rows, auto left_row, auto right_row, float* out, bool more) {
            gather(rows, M, left_row, rows_left.get());
            if constexpr (GROUP<P> == 1) {
                gather(rows, N, right_row, right.get());
                return product_turned(M, N, rows, rows_left.get(), right.get(), out, more);
            }
            std::fill(rows_left.get() + rows * deep<P>(M), rows_left.get() + rounded(rows) * deep<P>(M), P(0));
            transpose(rounded(rows), M, rows_left.get(), deep<P>(M), left.get(), STRIP<P>);
            pack<P>(rounded(rows), N, right_row, right.get());
            gemm(M, N, rounded(rows), left.get(), STRIP<P>, right.get(), Packed<P>{rounded(rows), N}, out, N, more);
        };
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < E; ++e) {
            float *to_up = d_up + e * D * U, *to_down = d_down + e * F * D;
            const i64 begin = sorted.start[e], end = sorted.start[e + 1];
            if (begin == end) std::fill(to_up, to_up + D * U, 0.0f), std::fill(to_down, to_down + F * D, 0.0f);
            for (i64 place = begin; place < end; place += STRIP<P>) {
                const i64 rows = std::min(STRIP<P>, end - place);
                const i64* slot = sorted.slot.data() + place;
                add(D, U, rows, [&](i64 i) { return x + slot[i] / k * D; },
                    [&](i64 i) { return i < rows ? d_inner.get() + (place + i) * deep_u : zeros.data(); }, to_up, place > begin);
                add(F, D, rows, [&](i64 i) { return active.get() + (place + i) * F; },
                    [&](i64 i) { return i < rows ? dy + slot[i] / k * D : none.data(); }, to_down, place > begin);
            }
        }
        gemm_done(left.get());
    }
}

}  // namespace

extern "C" {

#define EXPERTS(P, X, W, suffix)                                                                                            \
    void experts_##suffix(const X* x, const W* up, const W* down, const i64* expert, const float* weight, i64 T, i64 k,     \
                          i64 E, i64 D, i64 F, i64 glu, X* y, X* h, int threads) {                                          \
        experts<P>(x, up, down, expert, weight, T, k, E, D, F, glu, y, h, threads);                                         \
    }
EXPERTS(float, float, float, f32_f32)
EXPERTS(Half, bf16, float, bf16_f32)
EXPERTS(Half, bf16, bf16, bf16_bf16)
#undef EXPERTS

#define EXPERTS_BACKWARD(P, X, suffix)                                                                                      \
    void experts_backward_##suffix(const X* x, const float* up, const float* down, const i64* expert, const float* weight,  \
                                   const X* h, const X* dy, i64 T, i64 k, i64 E, i64 D, i64 F, i64 glu, X* dx, float* d_up, \
                                   float* d_down, float* d_weight, int threads) {                                           \
        experts_backward<P>(x, up, down, expert, weight, h, dy, T, k, E, D, F, glu, dx, d_up, d_down, d_weight, threads);   \
    }
EXPERTS_BACKWARD(float, float, f32_f32)
EXPERTS_BACKWARD(Half, bf16, bf16_f32)
#undef EXPERTS_BACKWARD

}  // extern "C"
