// What the operations share: number types, vectors, and float32 sums over them.
//
// Letters, here and in the sources: T tokens, H heads, n keys per axis, m picks per head, r Tucker rank, h cores, M picks per
// token, N table rows, C value width, c = C/h, G groups, S slots (a token's pick of an expert), E experts, D in, F inner or
// out, K chunk rows or head width, V vocabulary.
// Every sum is float32. Results do not depend on the number of threads, except d_core of tucker_topm_backward, which is
// added up in thread order.
//
// Vectors are PyTorch's (at::vec, headers only), as wide as the build's CPU_CAPABILITY says: 16 floats of AVX-512, 8 of AVX2,
// 4 of NEON. Plain loops are left to the compiler.

#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

using i32 = int32_t;
using i64 = int64_t;
using u64 = uint64_t;
using bf16 = c10::BFloat16;
using Vec = at::vec::Vectorized<float>;

namespace {

constexpr i64 LANES = Vec::size();

// Uninitialised, unlike a std::vector, which takes as long to fill as some operations do.
template <class T>
std::unique_ptr<T[]> room(i64 count) {
    return std::make_unique_for_overwrite<T[]>(count);
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void narrow(float x, float& y) { y = x; }
inline void narrow(float x, bf16& y) {  // round to nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    y.x = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline Vec load(const float* x) { return Vec::loadu(x); }
inline Vec load(const bf16* x) {
    Vec y;
    at::vec::load_fp32_from_bf16(x, y);
    return y;
}
// The first `count` lanes; the others are 0.
inline Vec load(const float* x, i64 count) { return count == LANES ? load(x) : Vec::loadu(x, count); }
inline Vec load(const bf16* x, i64 count) {
    if (count == LANES) return load(x);
    bf16 part[LANES] = {};
    std::memcpy(part, x, count * sizeof(bf16));
    return load(part);
}
inline void store(Vec x, float* y, i64 count) { x.store(y, int(count)); }
inline void store(Vec x, bf16* y, i64 count) { at::vec::convert_float_bfloat16(x, x).store(y, int(count)); }

inline float sum_of(Vec x) {
    return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, x);
}

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

// A plain loop would compare one after the other, since compilers keep to the order of NaNs.
template <class X>
inline float largest_of(const X* x, i64 count) {
    Vec best(-std::numeric_limits<float>::infinity());
    i64 i = 0;
    for (; i + LANES <= count; i += LANES) best = at::vec::maximum(best, load(x + i));
    alignas(64) float lanes[LANES];
    best.store(lanes);
    float largest = lanes[0];
    for (i64 j = 1; j < LANES; ++j) largest = std::max(largest, lanes[j]);
    for (; i < count; ++i) largest = std::max(largest, widen(x[i]));
    return largest;
}

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

inline float sigmoid(float x) {
    const float power = exp_nonpositive(-std::fabs(x));
    return (x < 0 ? power : 1.0f) / (1.0f + power);
}

}  // namespace
