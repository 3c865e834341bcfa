// The warps of the Hopper backward kernel that start copies: the producer, which brings K, V and the
// pairs, and the writers, which take the pieces of dq away.
#ifndef ALIBI_CUDA_SM90_BACKWARD_COPIES_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_COPIES_CUH_

#include "backward_memory.cuh"

namespace alibi {
namespace cuda {

// Buffers of a pair or task, by its number in the block, and the parity of their barriers.
template <int kStages>
__device__ __forceinline__ constexpr int stage_of(int number) {
  return number % kStages;
}
template <int kStages>
__device__ __forceinline__ constexpr int parity_of(int number) {
  return number / kStages % 2;
}

// One warp: all lanes walk, the first one waits and copies. It runs ahead of the consumers: it draws
// the next ticket when the last pair of a task is on its way.
template <int D>
struct BackwardProducer {
  static constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static constexpr int kRows = kTile.rows(), kColumns = kTile.columns, kStages = kTile.stages;
  static constexpr int kStatBytes = kStatFloats<kColumns> * 4;

  const HopperBackwardParams& params;
  BackwardMemory<D> memory;
  int tasks = 0, pairs = 0, clearings = 0;  // so far

  // K (0) or V (1) of a task, with rows that nobody may see cleared.
  __device__ __forceinline__ void copy_own(const KeyTask& task, int which, bool seen) {
    const int first_key = task.keys.begin;
    const Range held = {task.span.kv_start, task.span.kv_end};
    const bool clear = seen && needs_clearing<kRows>(first_key, held);
    const uint32_t tile = memory.own(tasks, which), full = memory.own_full(tasks, which);
    if (lane_id() == 0) {
      barrier_wait(memory.own_empty(tasks, which), parity_of<1>(tasks) ^ 1);
      if (which == 0)
        TaskNote{memory.task(tasks)}.store(task, seen ? TaskNote::kSeen : TaskNote::kUnseen);
      if (seen) {
        const uint32_t landed = clear ? memory.own_raw() : full;
        barrier_arrive_expect(landed, kTileBytes<kRows, D>);
        copy_tile<kRows, D>(tile, which == 0 ? params.k_map : params.v_map, landed, first_key,
                            task.place.head, task.place.batch);
      }
      if (!seen) barrier_arrive(full);
    }
    __syncwarp();
    if (!clear) return;
    barrier_wait(memory.own_raw(), parity_of<1>(clearings++));
    clear_rows<kRows, D>(tile, first_key, held);
    if (lane_id() == 0) barrier_arrive(full);
  }

  // The first lane.
  __device__ __forceinline__ void copy_pair(const KeyTask& task, int pair, bool last) const {
    const ProblemView& problem = params.backward.problem;
    const int batch = task.place.batch, head = task.walk.head(pair);
    const int row = task.walk.tile(pair) * kColumns, stage = stage_of<kStages>(pairs);
    const int index = task.walk.index(pair);
    const uint32_t full = memory.full(stage);
    barrier_wait(memory.empty(stage), parity_of<kStages>(pairs) ^ 1);
    PairNote{memory.note(stage)}.store(row, head * problem.batch + batch, problem.slopes[head],
                                       last);
    barrier_arrive_expect(full, 2 * kTileBytes<kColumns, D> + kStatBytes);
    copy_tile<kColumns, D>(memory.passing(0, stage), params.q_map, full, row, head, batch);
    copy_tile<kColumns, D>(memory.passing(1, stage), params.dout_map, full, row, head, batch);
    copy_run(memory.stats(stage), params.stats + int64_t{index} * kStatFloats<kColumns>, full,
             kStatBytes);
    tell_writer(pairs, index, task.walk.order(pair));
  }

  __device__ __forceinline__ void tell_writer(int pair, int index, int order) const {
    store_note(memory.writer_note(pair), index);
    store_note(memory.writer_note(pair) + 4, order);
    barrier_arrive(memory.writer_note_full(pair));
  }

  // Copies a pair of the task; the next one.
  __device__ __forceinline__ int produce_pair(const KeyTask& task, int pair) {
    const int next = task.walk.from(pair + 1);
    if (lane_id() == 0) copy_pair(task, pair, next == ReachWalk::kEnd);
    __syncwarp();
    ++pairs;
    return next;
  }

  // The first pair goes before V, whose place is free later.
  __device__ __forceinline__ void produce(const KeyTask& task) {
    int pair = task.walk.from(0);
    const bool seen = pair != ReachWalk::kEnd;
    copy_own(task, 0, seen);
    if (seen) pair = produce_pair(task, pair);
    copy_own(task, 1, seen);
    ++tasks;
    while (pair != ReachWalk::kEnd) pair = produce_pair(task, pair);
  }

  __device__ __forceinline__ void run() {
    while (true) {
      const int drawn = lane_id() == 0 ? take_ticket(params.ticket) : 0;
      const int ticket = __shfl_sync(kAllLanes, drawn, 0);
      if (ticket >= params.tasks) break;
      produce(key_task<D>(params, ticket));
    }
    if (lane_id() != 0) return;
    barrier_wait(memory.own_empty(tasks, 0), parity_of<1>(tasks) ^ 1);
    TaskNote{memory.task(tasks)}.store_end();
    barrier_arrive(memory.own_full(tasks, 0));
    for (int writer = 0; writer < kWriters; ++writer) tell_writer(pairs + writer, 0, -1);
  }
};

// Writer number `first` of the block, one thread. It adds every third piece, in the order of the pairs
// and of the groups, once it is there and it is the turn of the task's tile of keys.
template <int D>
__device__ __forceinline__ void write_pieces(const HopperBackwardParams& params,
                                             const BackwardMemory<D>& memory, int first) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  for (int number = first;; number += kWriters) {
    const int pair = number / kTile.groups, group = number % kTile.groups;
    barrier_wait(memory.writer_note_full(pair), parity_of<kWriterNotes>(pair));
    const int index = load_note(memory.writer_note(pair));
    const int order = load_note(memory.writer_note(pair) + 4);
    if (order < 0) return;
    int* turn = params.turns + int64_t{index} * kTile.groups + group;
    float* target = params.pieces + (int64_t{index} * kTile.groups + group) * kPieceFloats;
    int now = load_acquire(turn);
    barrier_wait(memory.piece_full(group, pair), parity_of<kPieceRing>(pair));
    while (now != order) now = load_acquire(turn);
    fence_async_proxy_global();
    const uint32_t piece = memory.piece(group, stage_of<kTile.piece_stages>(pair));
    if (order == 0) {
      store_run(target, piece, kPieceBytes);
    } else {
      add_run(target, piece, kPieceBytes);
    }
    runs_commit();
    runs_wait_read<0>();
    barrier_arrive(memory.piece_empty(group, pair));
    runs_wait<0>();
    store_release(turn, order + 1);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_COPIES_CUH_
