// Hooks for the tests. Not part of the C contract.
#ifndef ALIBI_CPU_TESTING_H_
#define ALIBI_CPU_TESTING_H_

#include <stdint.h>

#include "../alibi_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

// y[i] = 2^x[i] as the kernels compute it with this instruction set (null: the default). Returns an
// AlibiStatus.
ALIBI_EXPORT int32_t alibi_cpu_exp2(const float* x, float* y, int64_t n, const char* isa);

// y[i] = 2^x[i] as the weights of a softmax: in units of y(0).
ALIBI_EXPORT int32_t alibi_cpu_weight(const float* x, float* y, int64_t n, const char* isa);

// y[i] = log2(x[i]) as the log-sum-exp uses it.
ALIBI_EXPORT int32_t alibi_cpu_log2(const double* x, double* y, int64_t n, const char* isa);

// The kernels are tuned as on another CPU: a row of the table in tuning.cc; -1: as on this one. Returns
// how many rows there are.
ALIBI_EXPORT int32_t alibi_cpu_tuning(int32_t row);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // ALIBI_CPU_TESTING_H_
