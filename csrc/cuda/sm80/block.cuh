// Which part of the problem a thread block works on, and where its rows lie.
#ifndef ALIBI_CUDA_SM80_BLOCK_CUH_
#define ALIBI_CUDA_SM80_BLOCK_CUH_

#include "../tile_config.h"
#include "bias_mask.cuh"

namespace alibi {
namespace cuda {

// Whether the GPU that this is compiled for runs the kernel of a tile made for `made_for`;
// `of_turing` is what Turing's own row of the table says. bfloat16 needs 8.0.
template <class T>
__device__ __forceinline__ bool runs_here(Gpu made_for, Gpu of_turing) {
  if (!on_turing()) return made_for == kAmpere;
  return made_for == of_turing && !std::is_same<T, bfloat_t>::value;
}

// Blocks are numbered: tiles fastest, then heads, then batch items, so that blocks which run
// together share keys and values in the second-level cache. Tiles count down: under a causal mask
// the last ones are the longest and start first.
struct BlockPlace {
  int batch;
  int head;
  int tile;
};

__device__ __forceinline__ BlockPlace place_block(unsigned x, int tiles, int heads) {
  const unsigned count = static_cast<unsigned>(tiles), rest = x / count;
  const unsigned per_batch = static_cast<unsigned>(heads);
  return {static_cast<int>(rest / per_batch), static_cast<int>(rest % per_batch),
          tiles - 1 - static_cast<int>(x % count)};
}

__device__ __forceinline__ int key_head(const ProblemView& problem, int head) {
  return head / (problem.heads_q / problem.heads_kv);
}

template <class T>
__device__ __forceinline__ T* head_data(const TensorView& tensor, int batch, int head) {
  return static_cast<T*>(tensor.data) + batch * tensor.stride_b + head * tensor.stride_h;
}

// Rows [valid.begin, valid.end) of one head; all others read as zeros.
template <class T>
__device__ __forceinline__ RowSource<T> head_rows(const TensorView& tensor, int batch, int head,
                                                  Range valid, int head_dim) {
  return {head_data<const T>(tensor, batch, head), tensor.stride_s, valid, head_dim};
}

// A tile of query rows of one head, and the keys that at least one of them may see.
struct QueryTask {
  BlockPlace place;
  HeadView head;
  int kv_head;
  Range rows;
  Range keys;

  // Where a walk over the key tiles starts: the diagonal, or its beginning when it crosses several.
  __device__ __forceinline__ int start_position() const {
    return head.span.q_start + (head.causal ? rows.end - 1 : rows.begin);
  }
};

template <int kRows>
__device__ __forceinline__ QueryTask query_task(const ProblemView& problem, BlockPlace place) {
  QueryTask task;
  task.place = place;
  task.head = load_head(problem, task.place.batch, task.place.head);
  task.kv_head = key_head(problem, task.place.head);
  task.rows = {task.place.tile * kRows, least(task.place.tile * kRows + kRows, problem.len_q)};
  task.keys = visible_keys(task.head.span, task.rows, task.head.causal);
  return task;
}

template <int kRows>
__device__ __forceinline__ QueryTask query_task(const ProblemView& problem, unsigned block) {
  return query_task<kRows>(problem,
                           place_block(block, ceil_div(problem.len_q, kRows), problem.heads_q));
}

// The rows that a task may need of a query tensor (q, dout) or of a key tensor (k, v).
template <class T>
__device__ __forceinline__ RowSource<T> query_rows(const TensorView& tensor, const QueryTask& task,
                                                   const ProblemView& problem) {
  const Range every = {0, problem.len_q};
  return head_rows<T>(tensor, task.place.batch, task.place.head, every, problem.head_dim);
}
template <class T>
__device__ __forceinline__ RowSource<T> key_rows(const TensorView& tensor, const QueryTask& task,
                                                 const ProblemView& problem) {
  return head_rows<T>(tensor, task.place.batch, task.kv_head, task.keys, problem.head_dim);
}

// Index of row `row` in a contiguous [B, Hq, Sq] array.
__device__ __forceinline__ int64_t row_index(const ProblemView& problem, int batch, int head,
                                             int row) {
  return (static_cast<int64_t>(batch) * problem.heads_q + head) * problem.len_q + row;
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_BLOCK_CUH_
