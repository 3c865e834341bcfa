// The C contract of the ALiBi attention kernels: memory layout, entry points, status codes.
//
// Every backend library (libalibi_cpu.so, libalibi_cuda.so) exports these functions with these
// structs. The formulas are in docs/maths.md, the rules in alibi_kernels/rules.py; this file owns the
// memory layout and the status codes.
//
//   p_i     = q_start + i
//   s_ij    = scale * <q_i, k_j> + bias(p_i, j)     for allowed (i, j), -inf elsewhere
//   bias    = -slope_h * |p_i - j|                  symmetric        slope_h * (j - p_i)   signed
//   allowed = kv_start <= j < kv_end  and, if causal, j <= p_i
//   lse_i   = log sum_j exp(s_ij)                   natural logarithm; -inf when nothing is allowed
//   out_i   = sum_j exp(s_ij - lse_i) v_j           0 when nothing is allowed
//
// Symbols: B batch, Hq query heads, Hkv key/value heads (query head h reads key head
// h / (Hq / Hkv)), Sq, Sk lengths, D head_dim. All pointers are host pointers on the CPU backend
// and device pointers on the CUDA backend, except the structs themselves and `options`, which are
// always on the host. Plain C, so that ctypes, CUDA and AscendC hosts can include it.
#ifndef ALIBI_ATTENTION_H_
#define ALIBI_ATTENTION_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ALIBI_EXPORT __attribute__((visibility("default")))
#else
#define ALIBI_EXPORT
#endif

// Raised whenever a struct or a meaning below changes. alibi_kernels/_library.py refuses a library
// with another number.
#define ALIBI_ABI_VERSION 2

// Largest head_dim that the fused kernels take; larger ones run on the reference.
#define ALIBI_MAX_HEAD_DIM 256

// Keys of one entry of AlibiAttentionFwdArgs.key_norms.
#define ALIBI_NORM_KEYS 16

// Status codes. The lower-case name (alibi_status_name) is the key of the rule in
// alibi_kernels/rules.py that owns the message text; Python checks the same rule first, so a
// user meets a code only through a hand-written C caller.
typedef enum AlibiStatus {
  ALIBI_OK = 0,
  ALIBI_NULL_POINTER = 1,  // "null_pointer": a required pointer is null
  ALIBI_SHAPE = 2,         // "shape": a negative size, or a size the kernels cannot index
  ALIBI_DTYPE = 3,         // "dtype": not one of AlibiDtype
  ALIBI_HEAD_GROUPS = 4,   // "head_groups": heads_q is not a multiple of heads_kv
  ALIBI_HEAD_DIM = 5,      // "head_dim": below 1 or above ALIBI_MAX_HEAD_DIM
  ALIBI_BIAS = 6,          // "bias": not one of AlibiBias
  ALIBI_SCALE = 7,         // "scale": not finite
  ALIBI_SPANS = 8,         // "spans": not 0 <= kv_start <= kv_end <= len_k, or a causal q_start < 0
  ALIBI_UNSUPPORTED = 9,   // "unsupported": window, segments or dropout are not available yet
  ALIBI_ISA = 10,  // "isa": an instruction set that is unknown, not built or not on this CPU
  ALIBI_OUT_OF_MEMORY = 11,  // "out_of_memory": scratch could not be allocated
  ALIBI_DEVICE = 12,  // "device": the accelerator runtime reported an error, or there is none
  ALIBI_STATUS_COUNT = 13
} AlibiStatus;

typedef enum AlibiDtype { ALIBI_FLOAT32 = 0, ALIBI_FLOAT16 = 1, ALIBI_BFLOAT16 = 2 } AlibiDtype;
typedef enum AlibiBias { ALIBI_SYMMETRIC = 0, ALIBI_SIGNED = 1 } AlibiBias;

// A rank-4 tensor seen as [batch, head, sequence, last]: element (b, h, s, x) lies at
// data + b * stride_b + h * stride_h + s * stride_s + x, strides in elements; the last axis is
// contiguous.
// BNSD, BSND and one third of a packed [B, S, 3, H, D] projection differ in nothing but these three
// numbers.
typedef struct AlibiTensor {
  void* data;
  int64_t stride_b;
  int64_t stride_h;
  int64_t stride_s;
} AlibiTensor;

// Everything about a call that is not a tensor.
typedef struct AlibiProblem {
  int64_t batch;     // B >= 0
  int64_t heads_q;   // Hq >= 0
  int64_t heads_kv;  // Hkv, divides Hq
  int64_t len_q;     // Sq >= 0
  int64_t len_k;     // Sk >= 0
  int64_t head_dim;  // D, 1..ALIBI_MAX_HEAD_DIM
  int32_t dtype;     // AlibiDtype of every AlibiTensor of the call
  int32_t bias;      // AlibiBias
  int32_t causal;    // 0 or 1
  int32_t prune;     // 1: skip key tiles that the ALiBi bound proves negligible; 0: visit all
  float scale;       // finite
  // Reserved for later features; anything but 0 is ALIBI_UNSUPPORTED.
  float dropout_p;  // probability of dropping an attention weight; 0 = off
  int64_t seed;     // of the dropout mask
  int64_t window;   // require p_i - j < window; 0 = off
} AlibiProblem;

// Work counters, written when the caller asks for them (tests and benchmarks).
typedef struct AlibiStats {
  int64_t tiles_visited;  // key tiles that entered the result
  int64_t tiles_allowed;  // key tiles that hold at least one allowed pair
  int64_t decode_rows;    // CPU, forward: query rows that took the decode path
  int64_t tiles_scored;   // of the decode path: key tiles whose keys were read
} AlibiStats;

// How the CPU backend runs a call. Null pointer or zero fields mean the default. Other backends
// ignore it.
typedef struct AlibiOptions {
  int32_t threads;    // 0: the OpenMP default. Results never depend on it
  const char* isa;    // null: environment variable ALIBI_CPU_ISA, else the best one; may be null
  AlibiStats* stats;  // may be null
} AlibiOptions;

// alibi_attention, forward.
typedef struct AlibiAttentionFwdArgs {
  AlibiProblem problem;
  AlibiTensor q;            // [B, Hq, Sq, D]
  AlibiTensor k;            // [B, Hkv, Sk, D]
  AlibiTensor v;            // [B, Hkv, Sk, D]
  const float* slopes;      // [Hq]
  const int32_t* spans;     // [B, 3] (kv_start, kv_end, q_start), may be null = (0, Sk, Sk - Sq)
  const int32_t* segments;  // reserved: null
  AlibiTensor out;          // [B, Hq, Sq, D], written in full
  float* lse;               // [B, Hq, Sq] contiguous, written in full
  // [B, Hkv, ceil(Sk / ALIBI_NORM_KEYS)] contiguous, may be null. Entry t is at least |k_j|, summed
  // in float32, for every allowed key j of [t, t + 1) * ALIBI_NORM_KEYS. A cache that keeps them
  // spares a pruned call from reading keys in order to know that they do not matter. CPU; others
  // ignore it.
  const float* key_norms;
  const AlibiOptions* options;  // may be null
} AlibiAttentionFwdArgs;

// alibi_attention, backward. P is recomputed from lse; delta_i = <dout_i, out_i> - dlse_i.
typedef struct AlibiAttentionBwdArgs {
  AlibiProblem problem;
  AlibiTensor q;                // [B, Hq, Sq, D]
  AlibiTensor k;                // [B, Hkv, Sk, D]
  AlibiTensor v;                // [B, Hkv, Sk, D]
  const float* slopes;          // [Hq]
  const int32_t* spans;         // [B, 3], may be null
  const int32_t* segments;      // reserved: null
  AlibiTensor out;              // [B, Hq, Sq, D], as the forward wrote it
  const float* lse;             // [B, Hq, Sq] contiguous, as the forward wrote it
  AlibiTensor dout;             // [B, Hq, Sq, D]
  const float* dlse;            // [B, Hq, Sq] contiguous, may be null = 0
  AlibiTensor dq;               // [B, Hq, Sq, D], written in full
  AlibiTensor dk;               // [B, Hkv, Sk, D], written in full
  AlibiTensor dv;               // [B, Hkv, Sk, D], written in full
  float* dslopes;               // [Hq], written in full; may be null = not wanted
  const AlibiOptions* options;  // may be null
} AlibiAttentionBwdArgs;

// alibi_attention_weights, forward: p = exp(s - lse).
typedef struct AlibiWeightsFwdArgs {
  AlibiProblem problem;         // prune: weights below 2^-24 of the row's sum may be written as 0
  AlibiTensor q;                // [B, Hq, Sq, D]
  AlibiTensor k;                // [B, Hkv, Sk, D]
  const float* slopes;          // [Hq]
  const int32_t* spans;         // [B, 3], may be null
  const int32_t* segments;      // reserved: null
  AlibiTensor p;                // [B, Hq, Sq, Sk], written in full
  const AlibiOptions* options;  // may be null
} AlibiWeightsFwdArgs;

// alibi_attention_weights, backward: ds = p * (dp - sum_j p dp).
typedef struct AlibiWeightsBwdArgs {
  AlibiProblem problem;
  AlibiTensor q;                // [B, Hq, Sq, D]
  AlibiTensor k;                // [B, Hkv, Sk, D]
  const float* slopes;          // [Hq]
  const int32_t* spans;         // [B, 3], may be null
  const int32_t* segments;      // reserved: null
  AlibiTensor p;                // [B, Hq, Sq, Sk], as the forward wrote it
  AlibiTensor dp;               // [B, Hq, Sq, Sk]
  AlibiTensor dq;               // [B, Hq, Sq, D], written in full
  AlibiTensor dk;               // [B, Hkv, Sk, D], written in full
  float* dslopes;               // [Hq], written in full; may be null = not wanted
  const AlibiOptions* options;  // may be null
} AlibiWeightsBwdArgs;

// Entry points. They check what would corrupt memory (check.h), compute nothing on error, and
// return an AlibiStatus. `stream` is the CUDA stream to launch on; ignored on the CPU. Safe to call
// from several threads at once.
ALIBI_EXPORT int32_t alibi_attention_fwd(const AlibiAttentionFwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_attention_bwd(const AlibiAttentionBwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_attention_weights_fwd(const AlibiWeightsFwdArgs* args, void* stream);
ALIBI_EXPORT int32_t alibi_attention_weights_bwd(const AlibiWeightsBwdArgs* args, void* stream);

// ALIBI_ABI_VERSION of the library.
ALIBI_EXPORT int32_t alibi_abi_version(void);
// "ok", "null_pointer", ...; "unknown" for a number that is no status.
ALIBI_EXPORT const char* alibi_status_name(int32_t status);
// One JSON object that describes the build, valid for the life of the process. CPU:
//  "isas": [{"name": "avx512", "built": true, "supported": true}, ...]}
// with the best first; "selected" is "" when none can run.
ALIBI_EXPORT const char* alibi_build_info(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // ALIBI_ATTENTION_H_
