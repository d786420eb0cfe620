// Softmax and cross-entropy of a chunk of logits, which its gradient overwrites.

#include "common.h"

namespace {

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
            const float largest = largest_of(x, V);
            float sum = 0;
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
