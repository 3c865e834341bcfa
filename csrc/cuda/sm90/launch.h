// What the launches of the Hopper kernels share.
#ifndef ALIBI_CUDA_SM90_LAUNCH_H_
#define ALIBI_CUDA_SM90_LAUNCH_H_

#include <algorithm>
#include <initializer_list>

#include "tensor_map.h"

namespace alibi {
namespace cuda {

// Whether the Hopper kernels can run a problem with these inputs, [B, Hq, Sq, D] and [B, Hkv, Sk, D].
inline bool hopper_takes(const Call& call, int32_t dtype, const ProblemView& problem,
                         std::initializer_list<TensorView> queries,
                         std::initializer_list<TensorView> keys) {
  bool takes = call.capability_major() == 9 && dtype != ALIBI_FLOAT32 &&
               (problem.head_dim == 64 || problem.head_dim == 128) && problem.batch > 0 &&
               problem.heads_q > 0 && problem.len_q > 0 && problem.len_k > 0;
  for (const TensorView& tensor : queries)
    takes = takes && can_map(tensor, problem.batch, problem.heads_q, problem.len_q);
  for (const TensorView& tensor : keys)
    takes = takes && can_map(tensor, problem.batch, problem.heads_kv, problem.len_k);
  return takes;
}

// `heads`: those that the blocks are about, query heads or key heads. Keys and values of the heads that run at a time should stay in the second-level cache.
constexpr int64_t kCachedBytes = int64_t{32} << 20;

inline int heads_together(const ProblemView& problem, int heads) {
  const int64_t bytes = int64_t{problem.len_k} * problem.head_dim * 4;  // K and V of one key head
  const int group = heads / problem.heads_kv;
  const int64_t fit = kCachedBytes / bytes * group;
  return static_cast<int>(
      std::min<int64_t>(std::max<int64_t>(fit, group), int64_t{problem.batch} * heads));
}

// For the backward kernel, whose tasks wait for those of the same head with smaller tickets: enough
// heads that the tasks of one begin one after the other, two tasks for every multiprocessor at least,
// and few enough that what they share stays in the second-level cache.
constexpr int kBackwardHeads = 16;

inline int heads_of_backward(const ProblemView& problem, int multiprocessors, int key_rows) {
  const int wanted = most(kBackwardHeads, 2 * multiprocessors / ceil_div(problem.len_k, key_rows));
  return static_cast<int>(std::min<int64_t>(wanted, int64_t{problem.batch} * problem.heads_kv));
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_LAUNCH_H_
