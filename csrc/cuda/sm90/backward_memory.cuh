// Shared memory of the Hopper backward kernel: where tiles and barriers lie, and what the warps tell
// each other there.
#ifndef ALIBI_CUDA_SM90_BACKWARD_MEMORY_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_MEMORY_CUH_

#include "backward_ends.cuh"
#include "matrix.cuh"

namespace alibi {
namespace cuda {

// Warps that hand the pieces over to device memory, one by one in rotation: for most of the time that
// takes, one of them waits, for the turn or for the additions to arrive. There are no fewer barriers
// than writers: one that was a round ahead would take the last phase for its own.
constexpr int kWriters = 3;
constexpr int kPieceRing = 4;
// Notes for the writers. The producer writes that of pair n once pair n - 2 is released, which is
// after piece n - 3 found its buffer empty, and that after note n - 5 was read; at the end it is one
// pair further for each writer.
constexpr int kWriterNotes = 8;

// Addresses in shared memory: the tiles that stay, a ring of pairs that pass by, dS, pieces of dq.
template <int D>
struct BackwardMemory {
  static constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static constexpr int kConsumerWarps = 4 * kTile.groups;
  static constexpr int kOwnBytes = kTileBytes<kTile.rows(), D>;
  static constexpr int kPassingBytes = kTileBytes<kTile.columns, D>;
  static constexpr int kScoreBytes = kTileBytes<kTile.rows(), kTile.columns>;
  static constexpr int kStatBytes = kStatFloats<kTile.columns> * 4 + 16;
  static constexpr int kTaskBytes = 32;
  static constexpr int kPieces = kTile.groups * kTile.piece_stages;
  static constexpr int kPieceBarriers = kTile.groups * kPieceRing;
  static constexpr int kBarriers = 5 + 4 * kTile.stages + kWriterNotes + 2 * kPieceBarriers;
  static constexpr int kSmallBytes =
      kTile.stages * kStatBytes + 2 * kTaskBytes + 8 * (kWriterNotes + kBarriers);
  static constexpr int kBigBytes =
      2 * kOwnBytes + kTile.stages * (2 * kPassingBytes + kScoreBytes) + kPieces * kPieceBytes;
  // Shared memory starts at a multiple of 1024 bytes (shared_base); a few hundred more would do, too.
  static constexpr int kBytes = ceil_div(kSmallBytes, kEightRows) * kEightRows + kBigBytes;

  uint32_t small;  // statistics, tasks, barriers, notes
  uint32_t base;   // tiles: the multiple of 1024 after them

  __device__ __forceinline__ BackwardMemory()
      : small(shared_base()), base((small + kSmallBytes + kEightRows - 1) & ~(kEightRows - 1u)) {}

  // K (0) and V (1) of a task. V is done with before K: its place becomes that of the next K.
  __device__ __forceinline__ static int own_place(int task, int which) {
    return (task + which) % 2;
  }
  __device__ __forceinline__ uint32_t own(int task, int which) const {
    return base + own_place(task, which) * kOwnBytes;
  }
  __device__ __forceinline__ uint32_t passing(int which, int stage) const {
    return base + 2 * kOwnBytes + (2 * stage + which) * kPassingBytes;
  }
  __device__ __forceinline__ uint32_t scores(int stage) const {
    return passing(0, kTile.stages) + stage * kScoreBytes;
  }
  __device__ __forceinline__ uint32_t piece(int group, int stage) const {
    return scores(kTile.stages) + (group * kTile.piece_stages + stage) * kPieceBytes;
  }
  __device__ __forceinline__ uint32_t stats(int stage) const { return small + stage * kStatBytes; }
  // What the consumers must know of a pair, beside its statistics.
  __device__ __forceinline__ uint32_t note(int stage) const {
    return stats(stage) + kStatFloats<kTile.columns> * 4;
  }
  __device__ __forceinline__ uint32_t task(int task) const {
    return stats(kTile.stages) + task % 2 * kTaskBytes;
  }
  // What a writer must know of a pair: its number among the query tiles of all heads; how many tiles
  // of keys come before.
  __device__ __forceinline__ uint32_t writer_note(int pair) const {
    return stats(kTile.stages) + 2 * kTaskBytes + 8 * (pair % kWriterNotes);
  }
  __device__ __forceinline__ uint32_t barrier(int index) const {
    return writer_note(0) + 8 * (kWriterNotes + index);
  }
  // K (and what the task is), V: have come; may be overwritten; one of them as it came, before unseen
  // rows are cleared.
  __device__ __forceinline__ uint32_t own_full(int task, int which) const {
    return barrier(own_place(task, which));
  }
  __device__ __forceinline__ uint32_t own_empty(int task, int which) const {
    return barrier(2 + own_place(task, which));
  }
  __device__ __forceinline__ uint32_t own_raw() const { return barrier(4); }
  // Q, dO and the statistics of a pair.
  __device__ __forceinline__ uint32_t full(int stage) const { return barrier(5 + stage); }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kTile.stages + stage); }
  // dS of a pair.
  __device__ __forceinline__ uint32_t scores_full(int stage) const {
    return full(2 * kTile.stages + stage);
  }
  __device__ __forceinline__ uint32_t scores_empty(int stage) const {
    return full(3 * kTile.stages + stage);
  }
  // Of pair number `pair` of the block, as those of the pieces.
  __device__ __forceinline__ uint32_t writer_note_full(int pair) const {
    return full(4 * kTile.stages + pair % kWriterNotes);
  }
  __device__ __forceinline__ uint32_t piece_full(int group, int pair) const {
    return full(4 * kTile.stages + kWriterNotes + group * kPieceRing + pair % kPieceRing);
  }
  __device__ __forceinline__ uint32_t piece_empty(int group, int pair) const {
    return piece_full(kTile.groups + group, pair);
  }

  // One thread; a barrier of the block must follow.
  __device__ __forceinline__ void init_barriers() const {
    for (int which = 0; which < 2; ++which) {
      barrier_init(own_full(0, which), 1);
      barrier_init(own_empty(0, which), kConsumerWarps);
    }
    barrier_init(own_raw(), 1);
    for (int stage = 0; stage < kTile.stages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), kConsumerWarps);
      barrier_init(scores_full(stage), kConsumerWarps);
      barrier_init(scores_empty(stage), kConsumerWarps);
    }
    for (int i = 0; i < kWriterNotes; ++i) barrier_init(writer_note_full(i), 1);
    for (int i = 0; i < kPieceBarriers; ++i) {
      barrier_init(piece_full(0, 0) + 8 * i, 4);
      barrier_init(piece_empty(0, 0) + 8 * i, 1);
    }
    barrier_init_fence();
  }
};

// A number that another thread has left in shared memory, before a barrier.
__device__ __forceinline__ int load_note(uint32_t address) {
  float bits;
  load_shared(bits, address);
  return __float_as_int(bits);
}
__device__ __forceinline__ void store_note(uint32_t address, int number) {
  store_shared(address, static_cast<uint32_t>(number));
}

// A tile of keys of one key head, and the walk over the query tiles that it matters to.
struct KeyTask {
  BlockPlace place;
  Range keys;
  Span span;
  ReachWalk walk;
};

template <int D>
__device__ __forceinline__ KeyTask key_task(const HopperBackwardParams& params, int ticket) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  constexpr int kRows = kTile.rows();
  const ProblemView& problem = params.backward.problem;
  const int tiles = ceil_div(problem.len_k, kRows), group = problem.heads_q / problem.heads_kv;
  const TilePlace work = longest_first(static_cast<unsigned>(ticket), tiles,
                                       problem.batch * problem.heads_kv, params.together);
  const BlockPlace place = {work.sequence / problem.heads_kv, work.sequence % problem.heads_kv,
                            tiles - 1 - work.tile};  // the first one has the most rows
  const Span span = load_span(problem, place.batch);
  const Range keys = {place.tile * kRows, least(place.tile * kRows + kRows, problem.len_k)};
  const int query_tiles = ceil_div(problem.len_q, kTile.columns);
  const int first_head = place.head * group;
  const int first = (place.batch * problem.heads_q + first_head) * query_tiles;
  const Range seeing = seeing_rows(span, keys, problem.causal, problem.len_q);
  return {place,
          keys,
          span,
          {params.reaches, first, first_head, group, query_tiles, place.tile,
           covering_tiles(seeing, kTile.columns)}};
}

// What the consumers read of a task, once own_full of its K says that it is there: place (batch item,
// key head, tile), span, whether it has any pairs.
struct TaskNote {
  uint32_t address;

  enum Kind { kEnd, kUnseen, kSeen };  // no more tasks; one without pairs; one with pairs

  // One thread.
  __device__ __forceinline__ void store(const KeyTask& task, Kind kind) const {
    const int words[7] = {task.place.batch,
                          task.place.head,
                          task.place.tile,
                          task.span.kv_start,
                          task.span.kv_end,
                          task.span.q_start,
                          kind};
#pragma unroll
    for (int i = 0; i < 7; ++i) store_note(address + 4 * i, words[i]);
  }
  __device__ __forceinline__ void store_end() const { store_note(address + 24, kEnd); }
  __device__ __forceinline__ int kind() const { return load_note(address + 24); }
  __device__ __forceinline__ BlockPlace place() const {
    return {load_note(address), load_note(address + 4), load_note(address + 8)};
  }
  __device__ __forceinline__ Span span() const {
    return {load_note(address + 12), load_note(address + 16), load_note(address + 20)};
  }
};

// The same of a pair, once `full` does: the first row; the number of the head and batch item; the
// slope; whether it is the last pair of the task.
struct PairNote {
  uint32_t address;

  __device__ __forceinline__ void store(int row, int sequence, float slope, bool last) const {
    store_note(address, row);
    store_note(address + 4, sequence);
    store_shared(address + 8, slope);
    store_note(address + 12, last);
  }
  __device__ __forceinline__ int row() const { return load_note(address); }
  __device__ __forceinline__ int sequence() const { return load_note(address + 4); }
  __device__ __forceinline__ float slope() const {
    float x;
    load_shared(x, address + 8);
    return x;
  }
  __device__ __forceinline__ bool last() const { return load_note(address + 12) != 0; }
};

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_MEMORY_CUH_
