// The C contract of what a cache of keys keeps beside them: key norms, with which a pruned call
// need not read keys in order to know that they do not matter (AlibiAttentionFwdArgs.key_norms).
// Exported by libalibi_cpu.so only.
//
//   norms[b, h, t] = max(norms[b, h, t], max |k_j|)      over the keys j of a block of positions,
//                                                        [t, t + 1) * ALIBI_NORM_KEYS
//
// |k_j| is summed in float32; that of a key with a NaN is inf. Raising is all that is done, so norms
// that start at 0 and hear of every key that is written remain bounds, whatever is overwritten.
//
// Status codes and options are those of alibi_attention.h. ALIBI_SPANS: a key has no block.
#ifndef ALIBI_CACHE_H_
#define ALIBI_CACHE_H_

#include "alibi_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct AlibiKeyNormsArgs {
  int64_t batch;                // B >= 0
  int64_t heads_kv;             // Hkv >= 0
  int64_t len_k;                // S >= 0, of these keys
  int64_t head_dim;             // D >= 1
  int32_t dtype;                // AlibiDtype of k
  AlibiTensor k;                // [B, Hkv, S, D]; may be null without keys
  const int32_t* start;         // [B], the position of the first key; may be null without batch
  int64_t blocks;               // of the norms
  float* norms;                 // [B, Hkv, blocks] contiguous, raised; may be null without norms
  const AlibiOptions* options;  // may be null
} AlibiKeyNormsArgs;

ALIBI_EXPORT int32_t alibi_key_norms(const AlibiKeyNormsArgs* args, void* stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // ALIBI_CACHE_H_
