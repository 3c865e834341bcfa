// Forward pass of fused ALiBi attention: one thread block per tile of query rows, walking over key
// tiles.
//
//   s_ij = scale * <q_i, k_j> + bias(p_i, j)
//   lse_i = log sum_j exp(s_ij)     out_i = sum_j exp(s_ij - lse_i) v_j
//
//   for each key tile, from the diagonal outward:
//     S = Q K^T, then scale, bias, mask           S stays in registers
//     P = exp2(S - row_max)                       row_sum and O are rescaled when row_max grows
//     stop this side if nothing beyond can matter
//     O += P V
//
// One buffer each for K and V is enough to keep copies and products overlapped: V loads while S = Q
// K^T runs, and the next K loads while O += P V runs. That makes two barriers per key tile; the
// second one also carries the vote on stopping, which therefore costs no barrier of its own. A side
// stops when every row of the block is done (geometry.h, row_is_done).
//
// Rows of K and V that no row of the block may see are never read: they may hold anything, NaN
// included.
#ifndef ALIBI_CUDA_SM80_FORWARD_CUH_
#define ALIBI_CUDA_SM80_FORWARD_CUH_

#include "../tile_config.h"
#include "block.cuh"
#include "output.cuh"
#include "softmax.cuh"
#include "split.cuh"

namespace alibi {
namespace cuda {

// kSplit: several blocks share the keys of a query tile, see split.cuh.
template <class T, int D, bool kSplit, Gpu kGpu>
constexpr TileConfig kWalkTile = kSplit ? kSplitTile<T, D, kGpu> : kForwardTile<T, D, kGpu>;
template <class T, int D, bool kSplit, Gpu kGpu>
constexpr int kWalkThreads = kWalkTile<T, D, kSplit, kGpu>.threads();
template <class T, int D, bool kSplit, Gpu kGpu>
constexpr int kForwardShared =
    (kWalkTile<T, D, kSplit, kGpu>.rows() + 2 * kWalkTile<T, D, kSplit, kGpu>.columns) *
    kRowBytes<T, D>;

// Norm of row `row` of a tile, the same in the four lanes of a quad, which add up a quarter of the
// pieces each.
template <class T, int D>
__device__ __forceinline__ float tile_row_norm(uint32_t tile, int row) {
  float sum = 0.0f;
  for (int piece = lane_id() % 4; piece < kPieces<T, D>; piece += 4) {
    float words[4];
    load_shared(words, tile + tile_offset(row, piece, kPieces<T, D>));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kOnTensorCores<T>) {
        const float2 pair = unpack<T>(__float_as_uint(words[i]));
        sum = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, sum));
      } else {
        sum = fmaf(words[i], words[i], sum);
      }
    }
  }
  return norm_of(quad_sum(sum));
}

// The pruning test of this thread's rows: `needed` is what row_max plus the bias of a distance must
// reach.
template <int kM>
struct Pruner {
  float needed[kM][2];

  // Whether all keys from tile `keys` on, away from the diagonal, are negligible for this thread's
  // rows.
  __device__ __forceinline__ bool done(const HeadView& head, const RowState<kM>& state, int row0,
                                       Range keys) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const int position = head.span.q_start + row0 + 8 * i + lane_id() / 4;
      all = all && row_is_done(state.row_max[i / 2][i % 2], head.slope2,
                               distance_to(position, keys), needed[i / 2][i % 2]);
    }
    return all;
  }
};

template <class T, int D, int kM>
__device__ __forceinline__ Pruner<kM> make_pruner(const ForwardParams& params,
                                                  const QueryTask& task, uint32_t q_tile,
                                                  int warp_row) {
  const ProblemView& problem = params.problem;
  const HeadView& head = task.head;
  const bool active = can_prune(problem.prune, head.slope, head.causal, head.symmetric);
  const int norm_index = task.place.batch * problem.heads_kv + task.kv_head;
  const float k_norm = active ? params.key_norms[norm_index] : 0.0f;
  const float bits = tail_bits(head.slope, problem.len_k);
  Pruner<kM> pruner;
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int tile_row = warp_row + 8 * i + lane_id() / 4, row = task.rows.begin + tile_row;
    const float q_norm = active ? tile_row_norm<T, D>(q_tile, tile_row) : 0.0f;
    const bool sees_nothing =
        row >= problem.len_q || (head.causal && head.span.q_start + row < head.span.kv_start);
    pruner.needed[i / 2][i % 2] = !active ? NAN
                                  : sees_nothing
                                      ? -INFINITY
                                      : score_ceiling(problem.scale, q_norm, k_norm) + bits;
  }
  return pruner;
}

template <class T, int D, bool kSplit, Gpu kGpu>
__global__ void __launch_bounds__(kWalkThreads<T, D, kSplit, kGpu>, 1)
    attention_forward(const ForwardParams params) {
  if (!runs_here<T>(kGpu, kWalkTile<T, D, kSplit, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kWalkTile<T, D, kSplit, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const unsigned splits = kSplit ? static_cast<unsigned>(params.splits) : 1;
  const int split = static_cast<int>(blockIdx.x % splits);
  QueryTask task = query_task<kRows>(problem, blockIdx.x / splits);
  if constexpr (kSplit) {
    task.keys = split_range(reachable_keys<T>(params, task), params.splits, split, kColumns);
  }
  const TileWalk walk(task.keys, task.start_position(), kColumns);
  const RowSource<T> k = key_rows<T>(params.k, task, problem);
  const RowSource<T> v = key_rows<T>(params.v, task, problem);
  const uint32_t q_tile = shared_base();
  const uint32_t k_tile = q_tile + kRows * kRowBytes<T, D>,
                 v_tile = k_tile + kColumns * kRowBytes<T, D>;
  const int warp_row = warp_id() * 16 * kM, row0 = task.rows.begin + warp_row;

  float o[kM][D / 8][4];
  set_zero(o);
  RowState<kM> state;
  if (!task.keys.empty()) {
    load_tile<T, D, kRows, kThreads>(q_tile, query_rows<T>(params.q, task, problem),
                                     task.rows.begin);
    load_tile<T, D, kColumns, kThreads>(k_tile, k, walk.first() * kColumns);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    const Pruner<kM> pruner = make_pruner<T, D, kM>(params, task, q_tile, warp_row);

    for (int tile = walk.first(); tile != TileWalk::kEnd;) {
      load_tile<T, D, kColumns, kThreads>(v_tile, v, tile * kColumns);
      copy_commit();
      float s[kM][kColumns / 8][4], rescale[kM][2];
      set_zero(s);
      multiply_tiles<T, D>(s, q_tile, warp_row, k_tile);
      add_bias_and_mask<false>(s, task.head, row0, tile * kColumns);
      state.absorb(s, rescale);
      rescale_rows(o, rescale);

      const int after = walk.after(tile);
      const Range beyond = {after * kColumns, after * kColumns + kColumns};
      const bool stop = pruner.done(task.head, state, row0, beyond);
      copy_wait<0>();
      // Here V has landed for everyone, and everyone has read K.
      const int next = __syncthreads_and(stop) ? walk.after_stop(tile) : after;
      if (next != TileWalk::kEnd) load_tile<T, D, kColumns, kThreads>(k_tile, k, next * kColumns);
      copy_commit();
      multiply_registers<T, D>(o, s, v_tile);
      copy_wait<0>();
      __syncthreads();  // the next K has landed for everyone, and everyone has read V
      tile = next;
    }
  }
  store_output<T, D, kSplit>(params, task.place, split, row0, o, state);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_FORWARD_CUH_
