// Softmax and cross-entropy of a chunk of logits, which its gradient overwrites.

#include "common.h"

namespace {

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

}  // namespace

extern "C" {

void softmax_step_f32(float* logits, const i64* target, i64 K, i64 V, float scale, float* loss, int need_grad, int threads) {
    softmax_step(logits, target, K, V, scale, loss, need_grad, threads);
}
void softmax_step_bf16(bf16* logits, const i64* target, i64 K, i64 V, float scale, float* loss, int need_grad, int threads) {
    softmax_step(logits, target, K, V, scale, loss, need_grad, threads);
}

}  // extern "C"
