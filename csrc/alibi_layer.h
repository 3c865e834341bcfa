// The C contract of what a transformer layer needs beside its products and its attention: layer
// normalisation, and the exact GELU with the bias of the product before it. Exported by
// libalibi_cpu.so only.
//
//   layer_norm   mean_r = sum_c x_rc / width         rstd_r = (variance_r + epsilon)^-1/2
//                y_rc   = (x_rc - mean_r) rstd_r gamma_c + beta_c
//   bias_gelu    y_rc   = g(x_rc + bias_c)           g(h) = h Phi(h),  Phi(h) = erfc(-h / sqrt 2) / 2
//
// The variance is that of the population (divided by width). g(+inf) = inf, g(-inf) = 0, the limit,
// and the gradient is 1 and 0 there.
//
// Every matrix is [rows, width] float32, row after row without gaps. The first row of an array may
// lie on any float. rows may be 0, and then the pointers to matrices, mean and rstd may be null;
// width is at least 1. Outputs are written in full and overlap no input, sums over rows (dgamma,
// dbeta, dbias) too: they are 0 without rows. Results never depend on the number of threads.
//
// Status codes and options are those of alibi_attention.h. ALIBI_SCALE: epsilon is negative or not
// finite.
#ifndef ALIBI_LAYER_H_
#define ALIBI_LAYER_H_

#include "alibi_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct AlibiLayerNormFwdArgs {
  int64_t rows, width;
  float epsilon;
  const float *x, *gamma, *beta;  // [rows, width], [width], [width]
  float *y, *mean, *rstd;         // [rows, width], [rows], [rows]
  const AlibiOptions* options;    // may be null
} AlibiLayerNormFwdArgs;

// mean and rstd are what the forward returned for x; dy is the gradient that arrives at y.
typedef struct AlibiLayerNormBwdArgs {
  int64_t rows, width;
  const float *x, *gamma, *mean, *rstd, *dy;
  float *dx, *dgamma, *dbeta;
  const AlibiOptions* options;  // may be null
} AlibiLayerNormBwdArgs;

typedef struct AlibiBiasGeluFwdArgs {
  int64_t rows, width;
  const float *x, *bias;        // [rows, width], [width]
  float* y;                     // [rows, width]
  const AlibiOptions* options;  // may be null
} AlibiBiasGeluFwdArgs;

typedef struct AlibiBiasGeluBwdArgs {
  int64_t rows, width;
  const float *x, *bias, *dy;
  float *dx, *dbias;
  const AlibiOptions* options;  // may be null
} AlibiBiasGeluBwdArgs;

ALIBI_EXPORT int32_t alibi_layer_norm_fwd(const AlibiLayerNormFwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_layer_norm_bwd(const AlibiLayerNormBwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_bias_gelu_fwd(const AlibiBiasGeluFwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_bias_gelu_bwd(const AlibiBiasGeluBwdArgs* args, void* stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // ALIBI_LAYER_H_
