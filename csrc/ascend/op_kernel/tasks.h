// Walks the key tiles of the tasks of one AI Core. Cube and vector cores each run their own cursor
// over the same sequence, so they agree on every tile without exchanging a word.
#ifndef ALIBI_ASCEND_OP_KERNEL_TASKS_H_
#define ALIBI_ASCEND_OP_KERNEL_TASKS_H_

#include "kernel_operator.h"

#define ALIBI_DEVICE __aicore__
#include "tiling.h"

namespace alibi {
namespace ascend {

// One query tile of one head, or the part of it that falls to one AI Core.
struct Task {
  int32_t batch;
  int32_t head;
  int32_t row;   // first query row
  int32_t rows;  // 1..kTileQ
  KeySpan span;
  TileRange tiles;
  int32_t serial;  // 0, 1, 2, ... among the tasks of this core that have tiles
};

// Keys [first, end) of a tile that some row may see, counted from `key`, the first of the tile.
struct KeyRange {
  int32_t first;
  int32_t end;
};
__aicore__ inline KeyRange seen_keys(const KeySpan& span, int32_t key) {
  return {max_of(0, span.kv_start - key), min_of(kTileK, span.kv_end - key)};
}

class TaskList {
 public:
  // spans: [batch, 3] or null; reach: [batch, heads_q, tiles_q] or null.
  __aicore__ inline void Init(const AttentionTiling& tiling, GM_ADDR spans, GM_ADDR reach) {
    tiling_ = tiling;
    spans_.SetGlobalBuffer((__gm__ int32_t*)spans);
    reach_.SetGlobalBuffer((__gm__ int32_t*)reach);
  }

  __aicore__ inline Task get(int32_t index) {
    Task task;
    const int32_t query_tile = index / tiling_.parts, batch_head = query_tile / tiling_.tiles_q,
                  tile = query_tile % tiling_.tiles_q;
    task.batch = batch_head / tiling_.heads_q;
    task.head = batch_head % tiling_.heads_q;
    task.row = tile * kTileQ;
    task.rows = min_of(kTileQ, tiling_.len_q - task.row);
    task.span = span_of(task.batch);
    task.tiles =
        part_of(key_tiles(tiling_, task.span, task.row, task.rows, reach_of(task, query_tile)),
                index % tiling_.parts, tiling_.parts);
    task.serial = 0;
    return task;
  }

 private:
  // Of a batch item. Keys that causality hides from its last row are outside, too.
  __aicore__ inline KeySpan span_of(int32_t batch) {
    KeySpan span = {0, tiling_.len_k, tiling_.q_start};
    if (tiling_.has_spans) {
      span = safe_span({spans_.GetValue(batch * 3), spans_.GetValue(batch * 3 + 1),
                        spans_.GetValue(batch * 3 + 2)},
                       tiling_.len_k);
    }
    const int32_t last = span.q_start + (tiling_.len_q - 1) * tiling_.row_step;
    if (tiling_.causal) span.kv_end = min_of(span.kv_end, last + 1);
    return span;
  }

  // Of the query tile, or the largest of the heads that are its rows.
  __aicore__ inline int32_t reach_of(const Task& task, int32_t index) {
    if (!tiling_.has_reach) return kNoReach;
    if (tiling_.row_step) return reach_.GetValue(index);
    const int32_t first = (task.batch * tiling_.heads_q + task.head) * tiling_.len_q + task.row;
    int32_t reach = 0;
    for (int32_t r = 0; r < task.rows; ++r) reach = max_of(reach, reach_.GetValue(first + r));
    return reach;
  }

  AttentionTiling tiling_;
  AscendC::GlobalTensor<int32_t> spans_;
  AscendC::GlobalTensor<int32_t> reach_;
};

// The (task, key tile) pairs of one AI Core in order; tasks without tiles are passed over.
class TileCursor {
 public:
  __aicore__ inline void Init(TaskList* tasks, int32_t count, int32_t core, int32_t cores) {
    tasks_ = tasks;
    count_ = count;
    cores_ = cores;
    index_ = core - cores;
    serial_ = -1;
    find_task();
  }
  __aicore__ inline bool valid() const { return index_ < count_; }
  __aicore__ inline const Task& task() const { return task_; }
  __aicore__ inline int32_t tile() const { return tile_; }
  __aicore__ inline bool first() const { return tile_ == task_.tiles.first; }
  __aicore__ inline bool last() const { return tile_ == task_.tiles.end - 1; }
  __aicore__ inline void advance() {
    if (++tile_ == task_.tiles.end) find_task();
  }

 private:
  __aicore__ inline void find_task() {
    do {
      index_ += cores_;
      if (index_ >= count_) return;
      task_ = tasks_->get(index_);
    } while (task_.tiles.first == task_.tiles.end);
    task_.serial = ++serial_;
    tile_ = task_.tiles.first;
  }

  TaskList* tasks_;
  Task task_;
  int32_t count_;
  int32_t cores_;
  int32_t index_;
  int32_t serial_;
  int32_t tile_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_TASKS_H_
