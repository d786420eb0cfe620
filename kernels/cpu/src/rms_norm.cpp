// RMS norm in one pass: torch's is eight operations on a CPU.

#include "common.h"

namespace {

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

}  // namespace

extern "C" {

void rms_norm_f32(const float* x, const float* weight, i64 rows, i64 width, float eps, float* y, int) {
    rms_norm(x, weight, rows, width, eps, y);
}
void rms_norm_bf16(const bf16* x, const bf16* weight, i64 rows, i64 width, float eps, bf16* y, int) {
    rms_norm(x, weight, rows, width, eps, y);
}

}  // extern "C"
