// The weights themselves: P = softmax(scale Q K^T + bias + mask), [B, Hq, Sq, Sk], on one AI Core of
// an Atlas A2. Masked places and rows without keys are 0; every place is written once.
//
// A row's weights need its maximum and sum over all keys first, so each query tile passes over its
// key tiles twice:
//   pass 0   cube S = Q K^T    vector maximum and sum of each row, online as in attention_fwd.h
//   pass 1   cube S = Q K^T    vector P = exp(S - log of the sum), rounded, stored
// The scores are multiplied out twice rather than kept. A row block of them ([128, Sk] floats) fits
// no UB, so keeping them means a workspace that grows with Sk and the same loads again, while the
// cube core, with nothing else to do in this op, has the product ready before the vector cores have
// taken their 6 and 5 passes over the tile before. Rescaling weights already stored would round
// them twice.
//
// Hand-over through global memory in two slots: scores n+2 start when both vector cores have loaded
// scores n. Key tiles that no row of a query tile sees are not multiplied; their zeros are stored
// from a buffer that stays zero.
#ifndef ALIBI_ASCEND_OP_KERNEL_WEIGHTS_FWD_H_
#define ALIBI_ASCEND_OP_KERNEL_WEIGHTS_FWD_H_

#include "cube_unit.h"
#include "softmax_rows.h"

namespace alibi {
namespace ascend {

// Cross-core flags.
constexpr uint16_t kScoresReady = 0;
constexpr uint16_t kScoresTaken = 1;
constexpr uint8_t kCubeAndVectors = 2;  // synchronisation mode
constexpr int32_t kPasses = 2;

template <typename T>
struct WeightsTensors {
  GlobalTensor<T> q;           // [B, Hq, Sq, D] or [B, Sq, Hq, D]
  GlobalTensor<T> k;           // [B, Hkv, Sk, D] or [B, Sk, Hkv, D]
  GlobalTensor<float> slopes;  // [Hq]
  GlobalTensor<T> p;           // [B, Hq, Sq, Sk]
  GlobalTensor<float> scores;  // workspace of this core, see tiling.h
};

template <typename T>
class WeightsCube {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const WeightsTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    pipe->InitBuffer(query_, kSlots * kTileQ * width_ * kHalfBytes);
    pipe->InitBuffer(key_, kSlots * kTileK * width_ * kHalfBytes);
    cube_.Init(pipe, 2 * kSlots);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    int32_t serial = 0, n = 0;
    for (int32_t index = core; index < t_.tasks; index += t_.blocks) {
      const Task task = tasks->get(index);
      const int32_t tiles = task.tiles.end - task.tiles.first;
      if (tiles == 0) continue;
      const int32_t query = serial++ % kSlots;
      load_queries(task, query);
      for (int32_t i = 0; i < kPasses * tiles; ++i, ++n)
        scores(task, task.tiles.first + i % tiles, query, n);
      cube_.release(kQuerySlot + query);
    }
    for (int32_t i = 0; i < min_of(n, kSlots); ++i) AscendC::CrossCoreWaitFlag(kScoresTaken);
    cube_.finish();
  }

 private:
  static constexpr int32_t kQuerySlot = 0, kKeySlot = kSlots;  // of L1

  __aicore__ inline void load_queries(const Task& task, int32_t query) {
    cube_.acquire(kQuerySlot + query);
    cube_.load(query_.template Get<T>()[query * kTileQ * width_],
               g_.q[task.batch * t_.q.batch + task.head * t_.q.head + task.row * t_.q.row],
               task.rows, t_.head_dim, t_.q.row);
    cube_.loaded(kQuerySlot + query);
    cube_.use(kQuerySlot + query);
  }

  // Scores number n of this core.
  __aicore__ inline void scores(const Task& task, int32_t tile, int32_t query, int32_t n) {
    const int32_t slot = n % kSlots, keys = min_of(kTileK, t_.len_k - tile * kTileK);
    LocalTensor<T> key = key_.template Get<T>()[slot * kTileK * width_];
    cube_.acquire(kKeySlot + slot);
    cube_.load(key,
               g_.k[task.batch * t_.kv.batch + task.head / (t_.heads_q / t_.heads_kv) * t_.kv.head +
                    int64_t{tile} * kTileK * t_.kv.row],
               keys, t_.head_dim, t_.kv.row);
    cube_.loaded(kKeySlot + slot);
    if (n >= kSlots) AscendC::CrossCoreWaitFlag(kScoresTaken);
    cube_.use(kKeySlot + slot);
    cube_.multiply(
        {query_.template Get<T>()[query * kTileQ * width_], round_up(task.rows, kFractal), false},
        {key, round_up(keys, kFractal), true}, task.rows, keys, t_.head_dim,
        g_.scores[slot * kTileQ * kTileK], kTileK);
    cube_.release(kKeySlot + slot);
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kScoresReady);
  }

  AttentionTiling t_;
  WeightsTensors<T> g_;
  CubeUnit<T> cube_;
  int32_t width_;  // head_dim rounded up to whole fractals
  TBuf<TPosition::A1> query_;
  TBuf<TPosition::B1> key_;
};

template <typename T>
class WeightsVector {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const WeightsTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    pipe->InitBuffer(scores_, kWeightsUbScores);
    pipe->InitBuffer(weights_, kWeightsUbWeights);
    pipe->InitBuffer(zeros_, kWeightsUbZeros);
    pipe->InitBuffer(distances_, kWeightsUbDistances);
    pipe->InitBuffer(stats_, kFwdUbStats);
    pipe->InitBuffer(broadcast_, kFwdUbBroadcast);
    pipe->InitBuffer(ramp_, kFwdUbRamp);
    blocks_ = broadcast_.template Get<float>();
    bias_ = {ramp_.template Get<float>(), ramp_.template Get<float>()[kTileK], stat(kMinusRow),
             stat(kSlopes)};
    rows_ = {stat(kMaximum),    stat(kSum),  stat(kRowBias),
             stat(kNewMaximum), stat(kTile), stat(kScratch)};
    fill_index(bias_, t_.row_step);
    AscendC::Duplicate(zeros_.template Get<float>(), 0.0f, kWeightsUbZeros / kFloatBytes);
    SetFlag<HardEvent::V_MTE3>(kZeros);
    WaitFlag<HardEvent::V_MTE3>(kZeros);
    for (int32_t i = 0; i < kSlots; ++i) {
      SetFlag<HardEvent::V_MTE2>(i);
      SetFlag<HardEvent::MTE3_V>(i);
    }
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    for (int32_t index = core; index < t_.tasks; index += t_.blocks) run(tasks->get(index));
    for (int32_t i = 0; i < kSlots; ++i) {
      WaitFlag<HardEvent::V_MTE2>(i);
      WaitFlag<HardEvent::MTE3_V>(i);
    }
  }

 private:
  // Event ids: loads of scores and stores of weights use their slot.
  static constexpr int32_t kZeros = kSlots;
  // Rows of the statistics buffer.
  enum Stat {
    kMaximum,
    kSum,
    kNewMaximum,
    kRowBias,
    kTile,
    kScratch,
    kFactor,
    kMinusRow,
    kSlopes,
    kLse
  };

  __aicore__ inline LocalTensor<float> stat(int32_t row) {
    return stats_.template Get<float>()[row * kRows];
  }
  __aicore__ inline LocalTensor<float> score_tile(int32_t slot) {
    return scores_.template Get<float>()[slot * kRows * kTileK];
  }

  __aicore__ inline void run(const Task& task) {
    RowBlock block = row_block(t_, task, AscendC::GetSubBlockIdx());
    block.slope = g_.slopes.GetValue(task.head);
    block.anchor = anchor_of(t_, block);
    if (block.rows > 0) start(block);
    const int32_t tiles = task.tiles.end - task.tiles.first;
    if (tiles > 0) load_scores(block);
    for (int32_t i = 0; i < kPasses * tiles; ++i) {
      if (i + 1 < kPasses * tiles) load_scores(block);
      const int32_t slot = used_++ % kSlots, tile = task.tiles.first + i % tiles;
      if (block.rows == 0) continue;
      if (i < tiles) {
        take_in(block, tile * kTileK, slot);
      } else {
        if (i == tiles) finish_rows(block);
        weights(task, block, tile, slot);
      }
    }
    if (block.rows == 0) return;
    for (int32_t tile = 0; tile < t_.tiles_k; ++tile) {
      if (tile < task.tiles.first || tile >= task.tiles.end)
        store(zeros_.template Get<T>(), task, block, tile);
    }
  }

  __aicore__ inline void start(const RowBlock& block) {
    AscendC::Muls(bias_.ramp, bias_.index, block.slope, kTileK);
    AscendC::Duplicate(bias_.slopes, block.slope, block.rows);
    start_rows(rows_);
    vector_barrier();
  }

  // Next score tile into UB.
  __aicore__ inline void load_scores(const RowBlock& block) {
    const int32_t slot = loaded_++ % kSlots;
    AscendC::CrossCoreWaitFlag(kScoresReady);
    if (block.rows > 0) {
      WaitFlag<HardEvent::V_MTE2>(slot);
      AscendC::DataCopy(
          score_tile(slot),
          g_.scores[slot * kTileQ * kTileK + AscendC::GetSubBlockIdx() * kRows * kTileK],
          block.rows * kTileK);
      SetFlag<HardEvent::MTE2_V>(slot);
    }
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE2>(kScoresTaken);
  }

  // Scores in UB with scale, bias (but for row_bias) and mask.
  __aicore__ inline LocalTensor<float> biased(const RowBlock& block, int32_t key, int32_t slot) {
    LocalTensor<float> s = score_tile(slot);
    WaitFlag<HardEvent::MTE2_V>(slot);
    AscendC::Muls(s, s, t_.scale, block.rows * kTileK);
    vector_barrier();
    add_bias(s, rows_.row_bias, distances_.template Get<float>(), blocks_,
             blocks_[kRows * kBlockFloats], bias_, t_, block, side_of(t_, block, key), key);
    apply_mask(s, t_, block, key);
    return s;
  }

  // Pass 0.
  __aicore__ inline void take_in(const RowBlock& block, int32_t key, int32_t slot) {
    const LocalTensor<float> s = biased(block, key, slot);
    new_maximum(rows_, stat(kFactor), blocks_, s, block.rows);
    exponentials(s, blocks_, block.rows);
    row_sum(rows_.tile_sum, s, rows_.scratch, block.rows);
    SetFlag<HardEvent::V_MTE2>(slot);
    add_to_sum(rows_, stat(kFactor), rows_.tile_sum, block.rows);
    vector_barrier();
  }

  __aicore__ inline void finish_rows(const RowBlock& block) {
    log_of_sum(rows_, stat(kLse), block.rows);
    AscendC::Add(stat(kLse), stat(kLse), rows_.maximum, block.rows);
    vector_barrier();
  }

  // Pass 1.
  __aicore__ inline void weights(const Task& task, const RowBlock& block, int32_t tile,
                                 int32_t slot) {
    const LocalTensor<float> s = biased(block, tile * kTileK, slot);
    LocalTensor<T> p = weights_.template Get<T>()[slot * kRows * kTileK];
    AscendC::Sub(rows_.row_bias, stat(kLse), rows_.row_bias, block.rows);
    vector_barrier();
    spread(blocks_, rows_.row_bias, block.rows);
    vector_barrier();
    exponentials(s, blocks_, block.rows);
    WaitFlag<HardEvent::MTE3_V>(slot);
    AscendC::Cast(p, s, AscendC::RoundMode::CAST_RINT, block.rows * kTileK);
    SetFlag<HardEvent::V_MTE2>(slot);
    SetFlag<HardEvent::V_MTE3>(slot);
    WaitFlag<HardEvent::V_MTE3>(slot);
    store(p, task, block, tile);
    SetFlag<HardEvent::MTE3_V>(slot);
    vector_barrier();
  }

  // The columns of `tile` of P from a [kRows, kTileK] buffer.
  __aicore__ inline void store(const LocalTensor<T>& tile_rows, const Task& task,
                               const RowBlock& block, int32_t tile) {
    const int32_t key = tile * kTileK, bytes = min_of(kTileK, t_.len_k - key) * kHalfBytes;
    const int64_t row = (int64_t{task.batch} * t_.heads_q + task.head) * t_.len_q + block.first;
    AscendC::DataCopyPad(
        g_.p[row * t_.len_k + key], tile_rows,
        AscendC::DataCopyExtParams(block.rows, bytes, (kTileK * kHalfBytes - bytes) / 32,
                                   t_.len_k * kHalfBytes - bytes, 0));
  }

  AttentionTiling t_;
  WeightsTensors<T> g_;
  RampBuffers bias_;
  SoftmaxRows rows_;
  LocalTensor<float> blocks_;
  int32_t loaded_ = 0, used_ = 0;  // tiles so far; the slot is their parity
  TBuf<TPosition::VECIN> scores_;
  TBuf<TPosition::VECOUT> weights_, zeros_;
  TBuf<TPosition::VECCALC> stats_, distances_, broadcast_, ramp_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_WEIGHTS_FWD_H_
