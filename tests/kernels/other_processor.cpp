// Runs recorded calls of the library: other_processor CALLS RESULTS, for an emulator of another processor (test_neon.py).
//
// CALLS holds, for each call, its name and arguments: 'i' and a number, 'f' and a float, 'p' and bytes, or 'n' for null; lengths
// and numbers are 8 bytes. RESULTS holds the bytes of every 'p' afterwards. Numbers and floats travel in registers of their own
// here (AAPCS64), so that one signature with spare arguments fits all functions.

#include <cstdio>
#include <map>
#include <string>

#include "../../kernels/cpu/src/library.cpp"

#define NAMES(X)                                                                                                            \
    X(topm) X(product_topm) X(product_topm_backward) X(tucker_topm) X(tucker_topm_backward) X(lookup_f32) X(lookup_bf16)    \
    X(slice_dot_f32) X(slice_dot_bf16) X(lookup_backward_f32) X(lookup_backward_bf16) X(softmax_step_f32)                   \
    X(softmax_step_bf16) X(experts_f32_f32) X(experts_bf16_f32) X(experts_bf16_bf16) X(experts_backward_f32_f32)            \
    X(experts_backward_bf16_f32) X(attention_bf16) X(attention_backward_bf16) X(rms_norm_f32_f32) X(rms_norm_f32_bf16)      \
    X(rms_norm_bf16_bf16) X(rms_norm_backward_f32_f32) X(rms_norm_backward_f32_bf16) X(rms_norm_backward_bf16_bf16)         \
    X(swiglu_f32) X(swiglu_bf16) X(swiglu_backward_f32) X(swiglu_backward_bf16) X(heads_f32) X(heads_bf16)                  \
    X(heads_backward_f32) X(heads_backward_bf16) X(linear_f32) X(linear_bf16) X(scores_bf16)

// Stands for torch's BLAS, which the emulated program has not; operands are column by column.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float*, const float* a,
                       const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc) {
    for (int j = 0; j < *n; ++j)
        for (int i = 0; i < *m; ++i) {
            float sum = *beta ? c[i + j * *ldc] : 0;
            for (int l = 0; l < *k; ++l)
                sum += (*transa == 'T' ? a[l + i * *lda] : a[i + l * *lda]) * (*transb == 'T' ? b[j + l * *ldb] : b[l + j * *ldb]);
            c[i + j * *ldc] = sum;
        }
}

static i64 number(FILE* file) {
    i64 x = 0;
    if (fread(&x, 8, 1, file) != 1) x = -1;
    return x;
}

int main(int, char** names) {
#define ENTRY(name) {#name, reinterpret_cast<void*>(&name)},
    const std::map<std::string, void*> functions = {NAMES(ENTRY)};
    FILE *calls = fopen(names[1], "rb"), *results = fopen(names[2], "wb");
    for (i64 length; (length = number(calls)) > 0;) {
        std::string name(length, ' ');
        fread(name.data(), 1, length, calls);
        std::vector<std::vector<char>> buffers;
        i64 a[24] = {}, used = 0;
        float f[2] = {};
        int floats = 0;
        for (i64 left = number(calls); left > 0; --left) {
            const int kind = fgetc(calls);
            if (kind == 'i') a[used++] = number(calls);
            if (kind == 'n') a[used++] = 0;
            if (kind == 'f') fread(&f[floats++], 4, 1, calls);
            if (kind == 'p') {
                buffers.emplace_back(number(calls));
                fread(buffers.back().data(), 1, buffers.back().size(), calls);
                a[used++] = reinterpret_cast<i64>(buffers.back().data());
            }
        }
        if (!functions.count(name)) return fprintf(stderr, "no function %s\n", name.c_str()), 1;
        using Any = void (*)(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64,
                             i64, i64, i64, i64, float, float);
        reinterpret_cast<Any>(functions.at(name))(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                                                  a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23],
                                                  f[0], f[1]);
        for (const auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), results);
    }
    return fclose(results);
}
