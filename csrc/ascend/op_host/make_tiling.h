// From the shape of a call to the struct the kernels read. Plain C++: the CANN tiling functions and
// the tests both call it.
#ifndef ALIBI_ASCEND_OP_HOST_MAKE_TILING_H_
#define ALIBI_ASCEND_OP_HOST_MAKE_TILING_H_

#include <cstdint>

#include "tiling.h"

namespace alibi {
namespace ascend {

struct AttentionShape {
  int64_t batch;
  int64_t heads_q;
  int64_t heads_kv;
  int64_t len_q;
  int64_t len_k;
  int64_t head_dim;
  bool sequence_first;  // "BSND" rather than "BNSD"
  bool causal;
  bool symmetric;
  bool has_spans;
  bool has_reach;
  bool fused_forward;  // that kernel alone takes heads as rows and combines parts
  float scale;
};

// Strides of a contiguous [batch, heads, length, head_dim] tensor or its sequence-first form.
inline Strides strides_of(int64_t heads, int64_t length, int64_t head_dim, bool sequence_first) {
  if (sequence_first) return {length * heads * head_dim, head_dim, heads * head_dim};
  return {heads * length * head_dim, length * head_dim, head_dim};
}

// Parts of the keys of each of `query_tiles` query tiles: as many as `cores` AI Cores can take one
// each, as long as kMinPartTiles key tiles are left for a part.
inline int32_t choose_parts(int64_t query_tiles, int64_t tiles_k, int32_t cores) {
  const int64_t parts = cores / query_tiles, worth = tiles_k / kMinPartTiles;
  return max_of(1, static_cast<int32_t>(parts < worth ? parts : worth));
}

// Fills `tiling` for `cores` AI Cores. Returns null, or why the kernels cannot run this shape.
inline const char* make_tiling(AttentionShape s, int32_t cores, AttentionTiling* tiling) {
  if (s.batch < 1 || s.heads_q < 1 || s.heads_kv < 1 || s.len_q < 1 || s.len_k < 1)
    return "an empty tensor";
  if (s.heads_q % s.heads_kv != 0) return "heads_q is no multiple of heads_kv";
  if (s.head_dim < 1 || s.head_dim > kMaxHeadDim) return "head_dim is not in 1..256";
  if (s.len_q > kMaxLength || s.len_k > kMaxLength) return "a sequence longer than 2^29";
  const int64_t q_start = s.len_k - s.len_q;
  const bool rows_are_heads = s.fused_forward && s.len_q == 1 && s.heads_q > s.heads_kv;
  if (rows_are_heads) {  // one row per head lies in memory as one head of that many rows
    s.len_q = s.heads_q / s.heads_kv;
    s.heads_q = s.heads_kv;
  }
  const int64_t tiles_q = (s.len_q + kTileQ - 1) / kTileQ;
  const int64_t tiles_k = (s.len_k + kTileK - 1) / kTileK;
  if (s.batch * s.heads_q * (tiles_q > tiles_k ? tiles_q : tiles_k) > INT32_MAX / 2)
    return "more tiles than 32 bits count";
  *tiling = {};
  tiling->q = strides_of(s.heads_q, s.len_q, s.head_dim, s.sequence_first && !rows_are_heads);
  tiling->kv = strides_of(s.heads_kv, s.len_k, s.head_dim, s.sequence_first);
  if (tiling->q.row > kMaxRowStride || tiling->kv.row > kMaxRowStride)
    return "heads * head_dim above 65535 in layout BSND";
  tiling->batch = static_cast<int32_t>(s.batch);
  tiling->heads_q = static_cast<int32_t>(s.heads_q);
  tiling->heads_kv = static_cast<int32_t>(s.heads_kv);
  tiling->len_q = static_cast<int32_t>(s.len_q);
  tiling->len_k = static_cast<int32_t>(s.len_k);
  tiling->head_dim = static_cast<int32_t>(s.head_dim);
  tiling->causal = s.causal;
  tiling->symmetric = s.symmetric;
  tiling->has_spans = s.has_spans;
  tiling->has_reach = s.has_reach;
  tiling->q_start = static_cast<int32_t>(q_start);
  tiling->row_step = rows_are_heads ? 0 : 1;
  tiling->tiles_q = static_cast<int32_t>(tiles_q);
  tiling->tiles_k = static_cast<int32_t>(tiles_k);
  tiling->key_tasks = static_cast<int32_t>(s.batch * s.heads_kv * tiles_k);
  const int64_t query_tiles = s.batch * s.heads_q * tiles_q;
  tiling->parts = s.fused_forward ? choose_parts(query_tiles, tiles_k, cores) : 1;
  tiling->tasks = static_cast<int32_t>(query_tiles * tiling->parts);
  tiling->scale = s.scale;
  tiling->blocks = min_of(cores, tiling->tasks);
  return nullptr;
}

// Bytes of the whole workspace of each op; tiling.h says what lies in it.
inline int64_t fwd_workspace_bytes(const AttentionTiling& t) {
  const Workspace space = fwd_workspace(t.head_dim);
  return t.blocks * space.bytes + (t.parts > 1 ? t.tasks * space.part_bytes : 0);
}
inline int64_t grad_workspace_bytes(const AttentionTiling& t) {
  return t.blocks * grad_workspace(t.head_dim).bytes;
}
// Two slots of scores per AI Core.
inline int64_t weights_workspace_bytes(const AttentionTiling& t) { return t.blocks * kFloatTiles; }
inline int64_t weights_grad_workspace_bytes(const AttentionTiling& t) {
  return t.blocks * weights_grad_workspace(t.head_dim).bytes +
         int64_t{t.tasks} * kTileQ * kFloatBytes;
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_HOST_MAKE_TILING_H_
