// Gradient of the weights op on one AI Core of an Atlas A2, from P and dP, both [B, Hq, Sq, Sk].
//   ds_ij = p_ij (dp_ij - r_i)     r_i = sum_j p_ij dp_ij
//   dq_i  = scale sum_j ds_ij k_j  dk_j = scale sum_i ds_ij q_i  dslope = sum_ij ds_ij dbias/dslope
//
// Two phases in one launch. Phase kQueries owns query tiles: a first pass over the key tiles sums r,
// a second forms dS for dq and the slope gradient; r is left in global memory. Then the vector cores
// of all AI Cores meet once, because phase kKeys, which owns key tiles and sums dk over the query
// tiles (and the query heads of a group), needs the r of every row. Every sum belongs to one core and
// has a fixed order, so results are the same bits every time.
//
//   vector  dS, rounded to 16 bit, one pair of tiles after another
//   cube    dQ += dS K   or   dK += dS^T Q
// Two slots for dS: the vector cores write pair n+2 when the cube core has loaded pair n. The sums
// live in global memory as in attention_grad.h. They are read only behind kSumsReady, and the next
// task's first product overwrites them only behind its dS, which is stored after they were read.
//
// dS costs four passes (two conversions, subtract, multiply) and one to round; it is formed twice
// rather than kept, as it has the size of P.
#ifndef ALIBI_ASCEND_OP_KERNEL_WEIGHTS_GRAD_H_
#define ALIBI_ASCEND_OP_KERNEL_WEIGHTS_GRAD_H_

#include "grad_rows.h"
#include "tile_pairs.h"

namespace alibi {
namespace ascend {

// Cross-core flags.
constexpr uint16_t kGradsReady = 0;  // dS
constexpr uint16_t kGradsTaken = 1;
constexpr uint16_t kSumsReady = 2;      // all pairs of the task are in
constexpr uint16_t kRowSumsReady = 3;   // r, of every row
constexpr uint8_t kCubeAndVectors = 2;  // synchronisation modes
constexpr uint8_t kAllVectors = 0;

template <typename T>
struct WeightsGradTensors {
  GlobalTensor<T> q;            // [B, Hq, Sq, D] or [B, Sq, Hq, D]
  GlobalTensor<T> k;            // [B, Hkv, Sk, D] or [B, Sk, Hkv, D]
  GlobalTensor<T> p;            // [B, Hq, Sq, Sk]
  GlobalTensor<T> dp;           // [B, Hq, Sq, Sk]
  GlobalTensor<T> dq;           // like q
  GlobalTensor<T> dk;           // like k
  GlobalTensor<float> dslopes;  // [B, Hq, Sq], to be summed over batch and rows
  GlobalTensor<T> score_grads;  // workspace of this core, see tiling.h
  GlobalTensor<float> sums;
  GlobalTensor<float> row_sums;  // of all cores, [query tiles, kTileQ]
};

template <typename T>
class WeightsGradCube {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const WeightsGradTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    pipe->InitBuffer(moving_, kSlots * kTileQ * width_ * kHalfBytes);
    pipe->InitBuffer(grads_, kWeightsGradL1Grads);
    cube_.Init(pipe, kSlots);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    run(tasks, Phase::kQueries, core);
    run(tasks, Phase::kKeys, core);
    cube_.finish();
  }

 private:
  __aicore__ inline void run(TaskList* tasks, Phase phase, int32_t core) {
    PairCursor at;
    for (at.Init(tasks, t_, phase, core); at.valid(); at.advance()) {
      pair(at, phase, pairs_++ % kSlots);
      if (at.last()) AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kSumsReady);
    }
  }

  __aicore__ inline void pair(const PairCursor& at, Phase phase, int32_t slot) {
    const TilePair& pair = at.pair();
    const Task& task = pair.task;
    const int32_t rows = task.rows, keys = min_of(kTileK, t_.len_k - pair.key_tile * kTileK);
    LocalTensor<T> moving = moving_.template Get<T>()[slot * kTileQ * width_],
                   grads = grads_.template Get<T>()[slot * kTileQ * kTileK];
    cube_.acquire(slot);
    if (phase == Phase::kQueries) {
      const int64_t head = task.head / (t_.heads_q / t_.heads_kv);
      cube_.load_seen(moving,
                      g_.k[task.batch * t_.kv.batch + head * t_.kv.head +
                           int64_t{pair.key_tile} * kTileK * t_.kv.row],
                      seen_keys(task.span, pair.key_tile * kTileK), keys, t_.head_dim, t_.kv.row);
    } else {
      cube_.load(moving,
                 g_.q[task.batch * t_.q.batch + task.head * t_.q.head + task.row * t_.q.row], rows,
                 t_.head_dim, t_.q.row);
    }
    AscendC::CrossCoreWaitFlag(kGradsReady);
    cube_.load(grads, g_.score_grads[slot * kTileQ * kTileK], rows, keys, kTileK);
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE2>(kGradsTaken);
    cube_.loaded(slot);
    cube_.use(slot);
    const Operand<T> ds = {grads, round_up(rows, kFractal), phase == Phase::kKeys};
    if (phase == Phase::kQueries) {
      cube_.multiply(ds, {moving, round_up(keys, kFractal), false}, rows, t_.head_dim, keys,
                     g_.sums, width_, !at.first());
    } else {
      cube_.multiply(ds, {moving, round_up(rows, kFractal), false}, keys, t_.head_dim, rows,
                     g_.sums, width_, !at.first());
    }
    cube_.release(slot);
  }

  AttentionTiling t_;
  WeightsGradTensors<T> g_;
  CubeUnit<T> cube_;
  int32_t width_;  // head_dim rounded up to whole fractals
  int32_t pairs_ = 0;
  TBuf<TPosition::A1> moving_, grads_;
};

template <typename T>
class WeightsGradVector {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const WeightsGradTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    pipe->InitBuffer(loads_, kWeightsGradUbLoads);
    pipe->InitBuffer(floats_, kWeightsGradUbFloats);
    pipe->InitBuffer(grads_, kWeightsGradUbGrads);
    pipe->InitBuffer(distances_, kWeightsUbDistances);
    pipe->InitBuffer(stats_, kGradUbStats);
    pipe->InitBuffer(broadcast_, kGradUbBroadcast);
    pipe->InitBuffer(ramp_, kFwdUbRamp);
    p_ = floats_.template Get<float>();
    dp_ = p_[kRows * kTileK];
    ds_ = grads_.template Get<T>();
    blocks_ = broadcast_.template Get<float>();
    slope_sums_ = {stat(kSlopeSum),
                   stat(kSum),
                   stat(kMoment),
                   stat(kDistance),
                   stat(kScratch),
                   blocks_,
                   distances_.template Get<float>(),
                   {ramp_.template Get<float>(), ramp_.template Get<float>()[kTileK],
                    stat(kMinusRow), stat(kSum)}};
    // A strip of sums is loaded where P and dP of slot 0 are.
    staging_ = {loads_.template Get<float>(), ds_, t_.head_dim};
    fill_index(slope_sums_.ramp, t_.row_step);
    for (int32_t i = 0; i < kSlots; ++i) SetFlag<HardEvent::V_MTE2>(i);
    SetFlag<HardEvent::MTE3_V>(kStoreSlot);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    for (int32_t index = core; index < t_.tasks; index += t_.blocks)
      run_queries(tasks->get(index), index);
    AscendC::CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kRowSumsReady);
    AscendC::CrossCoreWaitFlag(kRowSumsReady);
    run_keys(tasks, core);
    for (int32_t i = 0; i < min_of(stored_, kSlots); ++i) AscendC::CrossCoreWaitFlag(kGradsTaken);
    for (int32_t i = 0; i < kSlots; ++i) WaitFlag<HardEvent::V_MTE2>(i);
    WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
  }

 private:
  static constexpr int32_t kRowSumSlot = 2;  // event id of the stores of r
  // Rows of the statistics buffer; r is loaded per pair, so it has two slots.
  enum Stat { kRowSum, kRowSumOdd, kDistance, kSum, kMoment, kScratch, kSlopeSum, kMinusRow };

  __aicore__ inline LocalTensor<float> stat(int32_t row) {
    return stats_.template Get<float>()[row * kRows];
  }
  // 16-bit P of slot `slot`; dP follows it.
  __aicore__ inline LocalTensor<T> loaded(int32_t slot) {
    return loads_.template Get<T>()[slot * 2 * kRows * kTileK];
  }
  __aicore__ inline GlobalTensor<float> row_sums(int32_t index) {
    return g_.row_sums[int64_t{index} * kTileQ + AscendC::GetSubBlockIdx() * kRows];
  }

  __aicore__ inline void run_queries(const Task& task, int32_t index) {
    const RowBlock block = row_block(t_, task, AscendC::GetSubBlockIdx());
    const int32_t tiles = task.tiles.end - task.tiles.first;
    if (block.rows > 0) {
      AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);
      AscendC::Duplicate(stat(kRowSum), 0.0f, kRows);
      vector_barrier();
    }
    if (tiles > 0) load(task, task.tiles.first);
    for (int32_t i = 0; i < 2 * tiles; ++i) {
      if (i + 1 < 2 * tiles) load(task, task.tiles.first + (i + 1) % tiles);
      const int32_t slot = used_++ % kSlots, key = (task.tiles.first + i % tiles) * kTileK;
      if (i < tiles) {
        add_row_sums(block, key, slot);
      } else {
        if (i == tiles) store_row_sums(block, index);
        score_grads(block, key, slot, stat(kRowSum), true);
      }
    }
    if (tiles > 0) AscendC::CrossCoreWaitFlag(kSumsReady);
    store_query_grads(staging_, t_, task, g_.dq, g_.sums, g_.dslopes, stat(kSlopeSum), tiles > 0);
  }

  __aicore__ inline void run_keys(TaskList* tasks, int32_t core) {
    PairCursor at;
    at.Init(tasks, t_, Phase::kKeys, core);
    for (int32_t index = core; index < t_.key_tasks; index += t_.blocks) {
      const bool any = at.valid() && at.pair().index == index;
      if (any) load_pair(at.pair());
      for (bool more = any; more;) {
        const TilePair pair = at.pair();
        const int32_t slot = used_++ % kSlots;
        more = !at.last();
        at.advance();
        if (more) load_pair(at.pair());
        score_grads(row_block(t_, pair.task, AscendC::GetSubBlockIdx()), pair.key_tile * kTileK,
                    slot, stat(kRowSum + slot), false);
      }
      if (any) AscendC::CrossCoreWaitFlag(kSumsReady);
      const KeyTask key = key_task(t_, index);
      const int32_t first = key.tile * kTileK, rows = own_rows(min_of(kTileK, t_.len_k - first));
      if (rows == 0) continue;
      store_sums(staging_,
                 g_.dk[key.batch * t_.kv.batch + key.head * t_.kv.head +
                       int64_t{first + AscendC::GetSubBlockIdx() * kRows} * t_.kv.row],
                 g_.sums, t_.scale, rows, t_.kv.row, any);
    }
  }

  // P and dP of the next pair into UB.
  __aicore__ inline void load(const Task& task, int32_t tile) {
    const int32_t slot = begin_load(task, tile);
    if (own_rows(task.rows) > 0) SetFlag<HardEvent::MTE2_V>(slot);
  }
  __aicore__ inline void load_pair(const TilePair& pair) {
    const Task& task = pair.task;
    const int32_t slot = begin_load(task, pair.key_tile),
                  index = (task.batch * t_.heads_q + task.head) * t_.tiles_q + task.row / kTileQ;
    if (own_rows(task.rows) == 0) return;
    AscendC::DataCopy(stat(kRowSum + slot), row_sums(index), kRows);
    SetFlag<HardEvent::MTE2_V>(slot);
  }
  __aicore__ inline int32_t begin_load(const Task& task, int32_t tile) {
    const int32_t slot = loaded_++ % kSlots, rows = own_rows(task.rows), key = tile * kTileK,
                  bytes = min_of(kTileK, t_.len_k - key) * kHalfBytes;
    if (rows == 0) return slot;
    const int64_t row = (int64_t{task.batch} * t_.heads_q + task.head) * t_.len_q + task.row +
                        AscendC::GetSubBlockIdx() * kRows;
    const AscendC::DataCopyExtParams strided(rows, bytes, t_.len_k * kHalfBytes - bytes,
                                             (kTileK * kHalfBytes - bytes) / 32, 0);
    WaitFlag<HardEvent::V_MTE2>(slot);
    AscendC::DataCopyPad(loaded(slot), g_.p[row * t_.len_k + key], strided,
                         AscendC::DataCopyPadExtParams<T>());
    AscendC::DataCopyPad(loaded(slot)[kRows * kTileK], g_.dp[row * t_.len_k + key], strided,
                         AscendC::DataCopyPadExtParams<T>());
    return slot;
  }

  // The pair in slot `slot` as floats in p_ and dp_, zero where no row may see the key.
  __aicore__ inline void convert(const RowBlock& block, int32_t key, int32_t slot) {
    const int32_t count = block.rows * kTileK;
    WaitFlag<HardEvent::MTE2_V>(slot);
    AscendC::Cast(p_, loaded(slot), AscendC::RoundMode::CAST_NONE, count);
    AscendC::Cast(dp_, loaded(slot)[kRows * kTileK], AscendC::RoundMode::CAST_NONE, count);
    vector_barrier();
    const KeyRange seen = seen_keys(block.span, key);
    if (seen.end - seen.first == kTileK) return;
    fill_columns(dp_, 0.0f, 0, seen.first, block.rows);
    vector_barrier();
    fill_columns(p_, 0.0f, seen.end, kTileK, block.rows);
    fill_columns(dp_, 0.0f, seen.end, kTileK, block.rows);
    vector_barrier();
  }

  __aicore__ inline void add_row_sums(const RowBlock& block, int32_t key, int32_t slot) {
    if (block.rows == 0) return;
    convert(block, key, slot);
    SetFlag<HardEvent::V_MTE2>(slot);
    AscendC::Mul(dp_, dp_, p_, block.rows * kTileK);
    vector_barrier();
    row_sum(stat(kSum), dp_, stat(kScratch), block.rows);
    AscendC::Add(stat(kRowSum), stat(kRowSum), stat(kSum), block.rows);
    vector_barrier();
  }

  __aicore__ inline void store_row_sums(const RowBlock& block, int32_t index) {
    if (block.rows == 0) return;
    SetFlag<HardEvent::V_MTE3>(kRowSumSlot);
    WaitFlag<HardEvent::V_MTE3>(kRowSumSlot);
    AscendC::DataCopy(row_sums(index), stat(kRowSum), kRows);
    SetFlag<HardEvent::MTE3_V>(kRowSumSlot);
    WaitFlag<HardEvent::MTE3_V>(kRowSumSlot);
  }

  // dS of a pair into global memory; sums for the slope gradient if the phase wants them.
  __aicore__ inline void score_grads(const RowBlock& block, int32_t key, int32_t slot,
                                     const LocalTensor<float>& row_sum, bool slopes) {
    if (block.rows > 0) {
      const int32_t count = block.rows * kTileK;
      convert(block, key, slot);
      spread(blocks_, row_sum, block.rows);
      vector_barrier();
      SetFlag<HardEvent::V_MTE2>(slot);
      subtract_rows(dp_, blocks_, block.rows, kTileK);
      vector_barrier();
      AscendC::Mul(dp_, dp_, p_, count);
      vector_barrier();
      WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
      AscendC::Cast(ds_, dp_, AscendC::RoundMode::CAST_RINT, count);
      if (slopes) add_slope_sums(slope_sums_, p_, dp_, block, side_of(t_, block, key), key);
      SetFlag<HardEvent::V_MTE3>(kStoreSlot);
      WaitFlag<HardEvent::V_MTE3>(kStoreSlot);
    }
    if (stored_ >= kSlots) AscendC::CrossCoreWaitFlag(kGradsTaken);
    if (block.rows > 0) {
      AscendC::DataCopy(g_.score_grads[half_tile(stored_ % kSlots)], ds_, block.rows * kTileK);
      SetFlag<HardEvent::MTE3_V>(kStoreSlot);
      vector_barrier();
    }
    ++stored_;
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kGradsReady);
  }

  AttentionTiling t_;
  WeightsGradTensors<T> g_;
  SlopeSums slope_sums_;
  Staging<T> staging_;
  LocalTensor<float> p_, dp_, blocks_;
  LocalTensor<T> ds_;
  int32_t loaded_ = 0, used_ = 0, stored_ = 0;  // pairs so far; the slot is their parity
  TBuf<TPosition::VECIN> loads_;
  TBuf<TPosition::VECOUT> grads_, stats_;
  TBuf<TPosition::VECCALC> floats_, distances_, broadcast_, ramp_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_WEIGHTS_GRAD_H_
