// The argument checks that every backend makes before it touches memory: argument struct ->
// AlibiStatus.
//
// The rules and their message texts belong to alibi_kernels/rules.py, and contract.py checks them
// first; these are the ones whose violation would corrupt memory or divide by zero. Values of `spans`
// live on the device of the backend, so only the CPU checks them.
#ifndef ALIBI_CHECK_H_
#define ALIBI_CHECK_H_

#include <math.h>
#include <stdint.h>

#include "alibi_attention.h"

namespace alibi {

// No offset of the kernels overflows an int64 while sizes stay below this.
constexpr int64_t kMaxSize = INT64_C(1) << 31;

inline bool sizes_valid(const AlibiProblem& p) {
  const int64_t sizes[] = {p.batch, p.heads_q, p.heads_kv, p.len_q, p.len_k};
  for (const int64_t size : sizes) {
    if (size < 0 || size >= kMaxSize) return false;
  }
  return true;
}

inline int32_t check_problem(const AlibiProblem& p) {
  if (!sizes_valid(p)) return ALIBI_SHAPE;
  if (p.dtype < ALIBI_FLOAT32 || p.dtype > ALIBI_BFLOAT16) return ALIBI_DTYPE;
  if (p.heads_q > 0 && (p.heads_kv == 0 || p.heads_q % p.heads_kv != 0)) return ALIBI_HEAD_GROUPS;
  if (p.head_dim < 1 || p.head_dim > ALIBI_MAX_HEAD_DIM) return ALIBI_HEAD_DIM;
  if (p.bias != ALIBI_SYMMETRIC && p.bias != ALIBI_SIGNED) return ALIBI_BIAS;
  if (!isfinite(p.scale)) return ALIBI_SCALE;
  if (p.dropout_p != 0.0f || p.seed != 0 || p.window != 0) return ALIBI_UNSUPPORTED;
  return ALIBI_OK;
}

// Queries: [B, Hq, Sq, *] and keys: [B, Hkv, Sk, *] hold nothing, so their pointers may be null.
inline bool no_queries(const AlibiProblem& p) {
  return p.batch == 0 || p.heads_q == 0 || p.len_q == 0;
}
inline bool no_keys(const AlibiProblem& p) {
  return p.batch == 0 || p.heads_kv == 0 || p.len_k == 0;
}

// What all argument structs share. Without spans the queries end where the keys end, which needs
// len_q <= len_k when causal.
template <class Args>
int32_t check_common(const Args& a) {
  const AlibiProblem& p = a.problem;
  const int32_t status = check_problem(p);
  if (status != ALIBI_OK) return status;
  if (a.segments != nullptr) return ALIBI_UNSUPPORTED;
  if (p.heads_q > 0 && a.slopes == nullptr) return ALIBI_NULL_POINTER;
  if (!no_queries(p) && a.q.data == nullptr) return ALIBI_NULL_POINTER;
  if (!no_keys(p) && a.k.data == nullptr) return ALIBI_NULL_POINTER;
  if (a.spans == nullptr && p.causal != 0 && p.len_q > p.len_k) return ALIBI_SPANS;
  return ALIBI_OK;
}

inline int32_t check(const AlibiAttentionFwdArgs& a) {
  const int32_t status = check_common(a);
  if (status != ALIBI_OK) return status;
  const AlibiProblem& p = a.problem;
  if (!no_keys(p) && a.v.data == nullptr) return ALIBI_NULL_POINTER;
  if (!no_queries(p) && (a.out.data == nullptr || a.lse == nullptr)) return ALIBI_NULL_POINTER;
  return ALIBI_OK;
}

inline int32_t check(const AlibiAttentionBwdArgs& a) {
  const int32_t status = check_common(a);
  if (status != ALIBI_OK) return status;
  const AlibiProblem& p = a.problem;
  const bool keys = a.v.data != nullptr && a.dk.data != nullptr && a.dv.data != nullptr;
  const bool queries =
      a.out.data != nullptr && a.lse != nullptr && a.dout.data != nullptr && a.dq.data != nullptr;
  if ((!no_keys(p) && !keys) || (!no_queries(p) && !queries)) return ALIBI_NULL_POINTER;
  return ALIBI_OK;
}

inline int32_t check(const AlibiWeightsFwdArgs& a) {
  const int32_t status = check_common(a);
  if (status != ALIBI_OK) return status;
  const bool empty = no_queries(a.problem) || no_keys(a.problem);
  return !empty && a.p.data == nullptr ? ALIBI_NULL_POINTER : ALIBI_OK;
}

inline int32_t check(const AlibiWeightsBwdArgs& a) {
  const int32_t status = check_common(a);
  if (status != ALIBI_OK) return status;
  const AlibiProblem& p = a.problem;
  const bool empty = no_queries(p) || no_keys(p);
  if (!empty && (a.p.data == nullptr || a.dp.data == nullptr)) return ALIBI_NULL_POINTER;
  if (!no_keys(p) && a.dk.data == nullptr) return ALIBI_NULL_POINTER;
  if (!no_queries(p) && a.dq.data == nullptr) return ALIBI_NULL_POINTER;
  return ALIBI_OK;
}

}  // namespace alibi

#endif  // ALIBI_CHECK_H_
