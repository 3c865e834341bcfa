// The (query tile, key tile) pairs of the backward pass, one sequence per AI Core and phase.
//
// Phase kKeys: a task is one key tile of one key head; its pairs are all query tiles of all query
// heads of its group that see it. Phase kQueries: a task is one query tile, as in the forward pass;
// its pairs are the key tiles it sees. Both decide "sees" by the same key_tiles(), so the two
// phases and the forward pass agree.
#ifndef ALIBI_ASCEND_OP_KERNEL_TILE_PAIRS_H_
#define ALIBI_ASCEND_OP_KERNEL_TILE_PAIRS_H_

#include "tasks.h"

namespace alibi {
namespace ascend {

enum class Phase { kKeys, kQueries };

struct TilePair {
  int32_t index;  // of the task
  int32_t inner;  // position among the candidates of the task
  Task task;      // query tile
  int32_t key_tile;
};

// Batch item, key head and tile of a task of phase kKeys.
struct KeyTask {
  int32_t batch;
  int32_t head;
  int32_t tile;
};
__aicore__ inline KeyTask key_task(const AttentionTiling& t, int32_t index) {
  const int32_t batch_head = index / t.tiles_k;
  return {batch_head / t.heads_kv, batch_head % t.heads_kv, index % t.tiles_k};
}

class PairCursor {
 public:
  __aicore__ inline void Init(TaskList* tasks, const AttentionTiling& tiling, Phase phase,
                              int32_t core) {
    tasks_ = tasks;
    t_ = tiling;
    phase_ = phase;
    count_ = phase == Phase::kKeys ? t_.key_tasks : t_.tasks;
    candidates_ = phase == Phase::kKeys ? t_.heads_q / t_.heads_kv * t_.tiles_q : t_.tiles_k;
    next_.index = core;
    next_.inner = -1;
    current_.index = -1;
    find();
    advance();
  }
  __aicore__ inline bool valid() const { return current_.index < count_; }
  __aicore__ inline const TilePair& pair() const { return current_; }
  __aicore__ inline bool first() const { return first_; }
  __aicore__ inline bool last() const { return next_.index != current_.index; }
  __aicore__ inline void advance() {
    first_ = next_.index != current_.index;
    current_ = next_;
    if (valid()) find();
  }

 private:
  __aicore__ inline void find() {
    for (;;) {
      if (++next_.inner == candidates_) {
        next_.inner = 0;
        next_.index += t_.blocks;
      }
      if (next_.index >= count_) return;
      int32_t query = next_.index;
      next_.key_tile = next_.inner;
      if (phase_ == Phase::kKeys) {
        const KeyTask key = key_task(t_, next_.index);
        const int32_t head = key.head * (t_.heads_q / t_.heads_kv) + next_.inner / t_.tiles_q;
        query = (key.batch * t_.heads_q + head) * t_.tiles_q + next_.inner % t_.tiles_q;
        next_.key_tile = key.tile;
      }
      next_.task = tasks_->get(query);
      if (next_.key_tile >= next_.task.tiles.first && next_.key_tile < next_.task.tiles.end) return;
    }
  }

  TaskList* tasks_;
  AttentionTiling t_;
  Phase phase_;
  int32_t count_;
  int32_t candidates_;
  bool first_;
  TilePair current_;
  TilePair next_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_TILE_PAIRS_H_
