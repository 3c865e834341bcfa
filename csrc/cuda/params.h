// What a kernel is told: one struct per kernel family, passed by value. Device pointers; strides in
// elements.
#ifndef ALIBI_CUDA_PARAMS_H_
#define ALIBI_CUDA_PARAMS_H_

#include <stdint.h>

namespace alibi {
namespace cuda {

// Element (b, h, s, x) lies at data + b * stride_b + h * stride_h + s * stride_s + x.
struct TensorView {
  void* data;
  int64_t stride_b;
  int64_t stride_h;
  int64_t stride_s;
  bool aligned;  // every row starts on a 16-byte boundary
};

// The part that all kernels share. B batch, Hq query heads, Hkv key heads, Sq and Sk lengths, D
// head_dim.
struct ProblemView {
  int batch;
  int heads_q;
  int heads_kv;
  int len_q;
  int len_k;
  int head_dim;
  bool causal;
  bool symmetric;
  bool prune;
  float scale;
  const float* slopes;   // [Hq]
  const int32_t* spans;  // [B, 3] (kv_start, kv_end, q_start), may be null
};

struct ForwardParams {
  ProblemView problem;
  TensorView q;            // [B, Hq, Sq, D]
  TensorView k;            // [B, Hkv, Sk, D]
  TensorView v;            // [B, Hkv, Sk, D]
  TensorView out;          // [B, Hq, Sq, D]
  float* lse;              // [B, Hq, Sq]
  const float* key_norms;  // [B, Hkv] largest |k_j|, null unless problem.prune
  int splits;              // how many blocks share the keys of a query tile
  float* split_out;        // [splits, B, Hq, Sq, D] scratch, null when splits is 1
  float* split_lse;        // [splits, B, Hq, Sq] scratch, base 2, null when splits is 1
};

struct BackwardParams {
  ProblemView problem;
  TensorView q;            // [B, Hq, Sq, D]
  TensorView k;            // [B, Hkv, Sk, D]
  TensorView v;            // [B, Hkv, Sk, D]
  TensorView out;          // [B, Hq, Sq, D]
  TensorView dout;         // [B, Hq, Sq, D]
  const float* lse;        // [B, Hq, Sq]
  const float* dlse;       // [B, Hq, Sq], may be null
  const float* key_norms;  // [B, Hkv], null unless problem.prune
  float* delta;            // [B, Hq, Sq] <dout_i, out_i> - dlse_i; of the portable kernels
  float* slack;            // [B, Hq, Sq] see row_deltas; null unless problem.prune; likewise
  TensorView dq;           // [B, Hq, Sq, D]
  TensorView dk;           // [B, Hkv, Sk, D]
  TensorView dv;           // [B, Hkv, Sk, D]
  float* slope_parts;      // [Hq, B, parts] scratch, null when dslopes is not wanted
};

struct WeightsForwardParams {
  ProblemView problem;
  TensorView q;  // [B, Hq, Sq, D]
  TensorView k;  // [B, Hkv, Sk, D]
  TensorView p;  // [B, Hq, Sq, Sk]
};

struct WeightsBackwardParams {
  ProblemView problem;
  TensorView q;        // [B, Hq, Sq, D]
  TensorView k;        // [B, Hkv, Sk, D]
  TensorView p;        // [B, Hq, Sq, Sk]
  TensorView dp;       // [B, Hq, Sq, Sk]
  float* delta;        // [B, Hq, Sq] scratch: sum_j p_ij dp_ij
  TensorView dq;       // [B, Hq, Sq, D]
  TensorView dk;       // [B, Hkv, Sk, D]
  float* slope_parts;  // [Hq, B, query tiles] scratch, null when dslopes is not wanted
};

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_PARAMS_H_
