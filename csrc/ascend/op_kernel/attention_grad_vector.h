// The vector cores' part of the backward pass; attention_grad.h explains the whole.
#ifndef ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_VECTOR_H_
#define ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_VECTOR_H_

#include "attention_grad.h"
#include "grad_rows.h"

namespace alibi {
namespace ascend {

template <typename T>
class GradVector {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const GradTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    pipe->InitBuffer(scores_, kGradUbScores);
    pipe->InitBuffer(weight_grads_, kGradUbScores);
    pipe->InitBuffer(weights_, kGradUbWeights);
    pipe->InitBuffer(score_grads_, kGradUbWeights);
    pipe->InitBuffer(stats_, kGradUbStats);
    pipe->InitBuffer(broadcast_, kGradUbBroadcast);
    pipe->InitBuffer(ramp_, kFwdUbRamp);
    blocks_ = broadcast_.template Get<float>();
    delta_blocks_ = blocks_[kRows * kBlockFloats];
    bias_ = {ramp_.template Get<float>(), ramp_.template Get<float>()[kTileK], stat(kMinusRow),
             stat(kSlopes)};
    slope_sums_ = {stat(kSlopeSum),
                   stat(kSum),
                   stat(kMoment),
                   stat(kRowBias),
                   stat(kScratch),
                   blocks_,
                   weights_.template Get<float>(),
                   bias_};
    staging_ = {tile(scores_, 0), weights_.template Get<T>(), t_.head_dim};
    fill_index(bias_, t_.row_step);
    for (int32_t i = 0; i < kSlots; ++i) SetFlag<HardEvent::V_MTE2>(i);
    SetFlag<HardEvent::MTE3_V>(kStoreSlot);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    run(tasks, Phase::kKeys, core, t_.key_tasks);
    run(tasks, Phase::kQueries, core, t_.tasks);
    for (int32_t i = 0; i < kSlots; ++i) WaitFlag<HardEvent::V_MTE2>(i);
    WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
  }

 private:
  // Rows of the statistics buffer; lse and delta are loaded per pair, so they have two slots.
  enum Stat {
    kLse,
    kLseOdd,
    kDelta,
    kDeltaOdd,
    kRowBias,
    kSum,
    kMoment,
    kScratch,
    kSlopeSum,
    kMinusRow,
    kSlopes
  };

  __aicore__ inline LocalTensor<float> stat(int32_t row) {
    return stats_.template Get<float>()[row * kRows];
  }
  __aicore__ inline void run(TaskList* tasks, Phase phase, int32_t core, int32_t count) {
    PairCursor at;
    at.Init(tasks, t_, phase, core);
    loaded_ = computed_ = 0;
    new_ramp_ = true;
    for (int32_t index = core; index < count; index += t_.blocks) {
      const bool any = at.valid() && at.pair().index == index;
      AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);
      vector_barrier();
      if (any) load(at.pair(), loaded_++ % kSlots);
      for (bool more = any; more;) {
        const int32_t slot = computed_++ % kSlots;
        const TilePair pair = at.pair();
        more = !at.last();
        compute(pair, phase, slot);
        at.advance();
        if (more) load(at.pair(), loaded_++ % kSlots);
      }
      if (any) AscendC::CrossCoreWaitFlag(kSumsReady);
      if (phase == Phase::kKeys) {
        store_key_grads(key_task(t_, index), any);
      } else {
        store_query_grads(staging_, t_, tasks->get(index), g_.dq, g_.sums, g_.dslopes,
                          stat(kSlopeSum), any);
      }
    }
  }

  __aicore__ inline RowBlock block_of(const Task& task) {
    RowBlock block = row_block(t_, task, AscendC::GetSubBlockIdx());
    block.slope = g_.slopes.GetValue(task.head);
    block.anchor = anchor_of(t_, block);
    return block;
  }

  __aicore__ inline void load(const TilePair& pair, int32_t slot) {
    const int32_t rows = own_rows(pair.task.rows);
    AscendC::CrossCoreWaitFlag(kTilesReady);
    if (rows == 0) return;
    const int64_t row = (int64_t{pair.task.batch} * t_.heads_q + pair.task.head) * t_.len_q +
                        pair.task.row + AscendC::GetSubBlockIdx() * kRows;
    const AscendC::DataCopyExtParams one_row(1, rows * kFloatBytes, 0, 0, 0);
    WaitFlag<HardEvent::V_MTE2>(slot);
    AscendC::DataCopy(tile(scores_, slot), g_.scores[half_tile(slot)], rows * kTileK);
    AscendC::DataCopy(tile(weight_grads_, slot), g_.weight_grads[half_tile(slot)], rows * kTileK);
    AscendC::DataCopyPad(stat(kLse + slot), g_.lse[row], one_row,
                         AscendC::DataCopyPadExtParams<float>());
    AscendC::DataCopyPad(stat(kDelta + slot), g_.delta[row], one_row,
                         AscendC::DataCopyPadExtParams<float>());
    SetFlag<HardEvent::MTE2_V>(slot);
  }

  // S, dP in UB -> P, dS in global memory.
  __aicore__ inline void compute(const TilePair& pair, Phase phase, int32_t slot) {
    const RowBlock block = block_of(pair.task);
    if (block.rows > 0) {
      const int32_t key = pair.key_tile * kTileK, count = block.rows * kTileK;
      const Side side = side_of(t_, block, key);
      LocalTensor<float> s = tile(scores_, slot), dp = tile(weight_grads_, slot);
      LocalTensor<T> p = weights_.template Get<T>(), ds = score_grads_.template Get<T>();
      set_ramp(block.slope);
      WaitFlag<HardEvent::MTE2_V>(slot);
      WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
      AscendC::Muls(s, s, t_.scale, count);
      vector_barrier();
      add_bias(s, stat(kRowBias), p.template ReinterpretCast<float>(), blocks_, delta_blocks_,
               bias_, t_, block, side, key);
      apply_mask(s, t_, block, key);
      if (key + kTileK > t_.len_k) fill_columns(dp, 0.0f, t_.len_k - key, kTileK, block.rows);
      spread_statistics(block, slot);
      subtract_rows(s, blocks_, block.rows, kTileK);
      subtract_rows(dp, delta_blocks_, block.rows, kTileK);
      vector_barrier();
      AscendC::Exp(s, s, count);
      vector_barrier();
      AscendC::Mul(dp, dp, s, count);
      if (phase == Phase::kKeys) AscendC::Cast(p, s, AscendC::RoundMode::CAST_RINT, count);
      vector_barrier();
      AscendC::Cast(ds, dp, AscendC::RoundMode::CAST_RINT, count);
      if (phase == Phase::kQueries) add_slope_sums(slope_sums_, s, dp, block, side, key);
      SetFlag<HardEvent::V_MTE2>(slot);
      SetFlag<HardEvent::V_MTE3>(kStoreSlot);
      WaitFlag<HardEvent::V_MTE3>(kStoreSlot);
      AscendC::DataCopy(g_.score_grads[half_tile(slot)], ds, count);
      if (phase == Phase::kKeys) AscendC::DataCopy(g_.weights[half_tile(slot)], p, count);
      SetFlag<HardEvent::MTE3_V>(kStoreSlot);
    }
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kGradsReady);
  }

  // In phase kKeys the head, hence the slope, changes from pair to pair.
  __aicore__ inline void set_ramp(float slope) {
    if (!new_ramp_ && slope == slope_) return;
    AscendC::Muls(bias_.ramp, bias_.index, slope, kTileK);
    AscendC::Duplicate(bias_.slopes, slope, kRows);
    vector_barrier();
    slope_ = slope;
    new_ramp_ = false;
  }

  // blocks_ = lse - row_bias and delta_blocks_ = delta, spread. A row without keys has lse = -inf;
  // its masked scores must come out as weights 0, so lse is kept above them.
  __aicore__ inline void spread_statistics(const RowBlock& block, int32_t slot) {
    const LocalTensor<float> lse = stat(kLse + slot);
    AscendC::Maxs(lse, lse, kNoMaximum, block.rows);
    vector_barrier();
    AscendC::Adds(lse, lse, -block.slope * static_cast<float>(block.anchor), block.rows);
    vector_barrier();
    AscendC::Sub(lse, lse, stat(kRowBias), block.rows);
    vector_barrier();
    spread(blocks_, lse, block.rows);
    spread(delta_blocks_, stat(kDelta + slot), block.rows);
    vector_barrier();
  }

  __aicore__ inline void store_key_grads(const KeyTask& task, bool any) {
    const int32_t first = task.tile * kTileK, rows = own_rows(min_of(kTileK, t_.len_k - first));
    if (rows == 0) return;
    const int64_t offset = task.batch * t_.kv.batch + task.head * t_.kv.head +
                           int64_t{first + AscendC::GetSubBlockIdx() * kRows} * t_.kv.row;
    store_sums(staging_, g_.dk[offset], g_.sums, t_.scale, rows, t_.kv.row, any);
    store_sums(staging_, g_.dv[offset], g_.sums[kTileK * width_], 1.0f, rows, t_.kv.row, any);
  }

  template <typename Buffer>
  __aicore__ inline LocalTensor<float> tile(Buffer& buffer, int32_t slot) {
    return buffer.template Get<float>()[slot * kRows * kTileK];
  }

  AttentionTiling t_;
  GradTensors<T> g_;
  RampBuffers bias_;
  SlopeSums slope_sums_;  // distances share the weights buffer, unused in phase kQueries
  Staging<T> staging_;
  LocalTensor<float> blocks_, delta_blocks_;
  int32_t width_;
  int32_t loaded_ = 0, computed_ = 0;  // pairs so far; the slot is their parity
  float slope_ = 0;                    // that the ramp holds
  bool new_ramp_ = true;
  TBuf<TPosition::VECIN> scores_, weight_grads_;
  TBuf<TPosition::VECOUT> weights_, score_grads_, stats_;
  TBuf<TPosition::VECCALC> broadcast_, ramp_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_VECTOR_H_
