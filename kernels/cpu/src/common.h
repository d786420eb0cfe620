// What the operations share: number types, and float32 sums over them.
//
// Letters, here and in the sources: T tokens, H heads, n keys per axis, m picks per head, r Tucker rank, h cores, M picks per
// token, N table rows, C value width, c = C/h, G groups, S sorted rows, E experts, D in, F out, K chunk rows, V vocabulary.
// Every sum is float32. Results do not depend on the number of threads, except d_core of tucker_topm_backward, which is
// added up in thread order.

#pragma once

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

template <class X>
inline void add_scaled(float* __restrict out, const X* __restrict x, float scale, i64 count) {
#pragma omp simd
    for (i64 i = 0; i < count; ++i) out[i] += scale * widen(x[i]);
}

}  // namespace
