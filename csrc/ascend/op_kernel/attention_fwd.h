// Forward pass of fused ALiBi attention on one AI Core of an Atlas A2: a cube core and two vector
// cores.
//   s_ij = scale <q_i, k_j> + bias(p_i, j)      out_i = sum_j exp(s_ij - lse_i) v_j
//
// Per key tile four stages, alternating between the two kinds of core and meeting in global memory
// (which the L2 cache holds):
//   cube    scores    S = Q K^T            [128, 128] float
//   vector  weights   P = exp(S - max)     [128, 128] 16-bit; max, sum, rescaling factor per row
//   cube    product   O = P V              [128, head_dim] float
//   vector  update    acc = acc * factor + O
// The cube core runs two score products ahead, so it multiplies tile n+1 or n+2 while the vector
// cores are at tile n. Two slots per hand-over suffice and need no flags for "slot free": scores
// n+2 start after weights n arrived, weights n+2 are written after product n arrived, product n+2
// starts after weights n+2 arrived; each of these implies that slot n % 2 was read. The two vector
// cores take 64 query rows each; one with no rows still takes part in every flag.
//
// The vector cores are the bottleneck, so passes over S are what counts: scale, ramp, maximum,
// subtract, exp, sum, round (bias_mask.h explains why the bias is one pass). Masks touch only tiles
// at an edge.
//
// A decode step has few query tiles, often fewer than there are AI Cores. Then the key tiles of each
// are split into parts (tiling.h), and a part leaves its accumulator, maximum and sum in global
// memory as they are. The vector cores of all AI Cores meet once, and each query tile is finished
// by one of them, which takes in the parts in their order as if they were tiles:
//   m' = max(m, m_part)   l' = l exp(m - m') + l_part exp(m_part - m')   acc likewise
// So the result depends on the number of parts, hence of AI Cores, but never on timing.
#ifndef ALIBI_ASCEND_OP_KERNEL_ATTENTION_FWD_H_
#define ALIBI_ASCEND_OP_KERNEL_ATTENTION_FWD_H_

#include "cube_unit.h"
#include "softmax_rows.h"

namespace alibi {
namespace ascend {

// Cross-core flags.
constexpr uint16_t kScoresReady = 0;
constexpr uint16_t kWeightsReady = 1;
constexpr uint16_t kProductReady = 2;
constexpr uint16_t kPartsReady = 3;
constexpr uint8_t kCubeAndVectors = 2;  // synchronisation modes
constexpr uint8_t kAllVectors = 0;

// Global tensors of the op; the comments give shapes.
template <typename T>
struct FwdTensors {
  GlobalTensor<T> q;           // [B, Hq, Sq, D] or [B, Sq, Hq, D]
  GlobalTensor<T> k;           // [B, Hkv, Sk, D] or [B, Sk, Hkv, D]
  GlobalTensor<T> v;           // like k
  GlobalTensor<float> slopes;  // [Hq]
  GlobalTensor<T> out;         // like q
  GlobalTensor<float> lse;     // [B, Hq, Sq]
  GlobalTensor<float> scores;  // workspace of this core, see tiling.h
  GlobalTensor<T> weights;
  GlobalTensor<float> product;
  GlobalTensor<float> parts;  // results of all parts
};

template <typename T>
class FwdCube {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const FwdTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    pipe->InitBuffer(query_, kSlots * kTileQ * width_ * kHalfBytes);
    pipe->InitBuffer(key_, kSlots * kTileK * width_ * kHalfBytes);
    pipe->InitBuffer(value_, kSlots * kTileK * width_ * kHalfBytes);
    pipe->InitBuffer(weights_, kSlots * kTileQ * kTileK * kHalfBytes);
    cube_.Init(pipe, 3 * kSlots);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    TileCursor ahead, behind;
    ahead.Init(tasks, t_.tasks, core, t_.blocks);
    behind.Init(tasks, t_.tasks, core, t_.blocks);
    int32_t scored = 0;
    for (; scored < kSlots && ahead.valid(); ++scored, ahead.advance()) {
      load_keys(ahead, scored % kSlots);
      scores(ahead, scored % kSlots);
    }
    for (int32_t n = 0; behind.valid(); ++n, behind.advance()) {
      load_values(behind, n % kSlots);
      if (ahead.valid()) load_keys(ahead, scored % kSlots);
      AscendC::CrossCoreWaitFlag(kWeightsReady);
      product(behind, n % kSlots);
      if (ahead.valid()) {
        scores(ahead, scored % kSlots);
        ++scored;
        ahead.advance();
      }
    }
    cube_.finish();
  }

 private:
  // L1 slots: queries (by task), keys, values with weights (by tile).
  static constexpr int32_t kQuerySlot = 0, kKeySlot = kSlots, kValueSlot = 2 * kSlots;

  __aicore__ inline int64_t kv_offset(const TileCursor& at) const {
    const Task& task = at.task();
    return task.batch * t_.kv.batch + task.head / (t_.heads_q / t_.heads_kv) * t_.kv.head +
           int64_t{at.tile()} * kTileK * t_.kv.row;
  }
  __aicore__ inline int32_t keys_of(const TileCursor& at) const {
    return min_of(kTileK, t_.len_k - at.tile() * kTileK);
  }

  __aicore__ inline void load_keys(const TileCursor& at, int32_t slot) {
    const Task& task = at.task();
    if (at.first()) {
      const int32_t q = task.serial % kSlots;
      cube_.acquire(kQuerySlot + q);
      cube_.load(query_.template Get<T>()[q * kTileQ * width_],
                 g_.q[task.batch * t_.q.batch + task.head * t_.q.head + task.row * t_.q.row],
                 task.rows, t_.head_dim, t_.q.row);
      cube_.loaded(kQuerySlot + q);
    }
    cube_.acquire(kKeySlot + slot);
    cube_.load(key_.template Get<T>()[slot * kTileK * width_], g_.k[kv_offset(at)], keys_of(at),
               t_.head_dim, t_.kv.row);
    cube_.loaded(kKeySlot + slot);
  }

  __aicore__ inline void scores(const TileCursor& at, int32_t slot) {
    const Task& task = at.task();
    const int32_t q = task.serial % kSlots, keys = keys_of(at);
    if (at.first()) cube_.use(kQuerySlot + q);
    cube_.use(kKeySlot + slot);
    cube_.multiply(
        {query_.template Get<T>()[q * kTileQ * width_], round_up(task.rows, kFractal), false},
        {key_.template Get<T>()[slot * kTileK * width_], round_up(keys, kFractal), true}, task.rows,
        keys, t_.head_dim, g_.scores[slot * kTileQ * kTileK], kTileK);
    cube_.release(kKeySlot + slot);
    if (at.last()) cube_.release(kQuerySlot + q);
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kScoresReady);
  }

  __aicore__ inline void load_values(const TileCursor& at, int32_t slot) {
    cube_.acquire(kValueSlot + slot);
    cube_.load_seen(value_.template Get<T>()[slot * kTileK * width_], g_.v[kv_offset(at)],
                    seen_keys(at.task().span, at.tile() * kTileK), keys_of(at), t_.head_dim,
                    t_.kv.row);
  }

  __aicore__ inline void product(const TileCursor& at, int32_t slot) {
    const int32_t rows = at.task().rows, keys = keys_of(at);
    LocalTensor<T> weights = weights_.template Get<T>()[slot * kTileQ * kTileK],
                   value = value_.template Get<T>()[slot * kTileK * width_];
    cube_.load(weights, g_.weights[slot * kTileQ * kTileK], rows, keys, kTileK);
    cube_.loaded(kValueSlot + slot);
    cube_.use(kValueSlot + slot);
    cube_.multiply({weights, round_up(rows, kFractal), false},
                   {value, round_up(keys, kFractal), false}, rows, t_.head_dim, keys,
                   g_.product[slot * kTileQ * width_], width_);
    cube_.release(kValueSlot + slot);
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kProductReady);
  }

  AttentionTiling t_;
  FwdTensors<T> g_;
  CubeUnit<T> cube_;
  int32_t width_;  // head_dim rounded up to whole fractals
  TBuf<TPosition::A1> query_, weights_;
  TBuf<TPosition::B1> key_, value_;
};

template <typename T>
class FwdVector {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const FwdTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    pipe->InitBuffer(scores_, kFwdUbScores);
    pipe->InitBuffer(weights_, kFwdUbWeights);
    pipe->InitBuffer(acc_, kFwdUbOut);
    pipe->InitBuffer(product_, kFwdUbProduct);
    pipe->InitBuffer(stats_, kFwdUbStats);
    pipe->InitBuffer(broadcast_, kFwdUbBroadcast);
    pipe->InitBuffer(ramp_, kFwdUbRamp);
    blocks_ = broadcast_.template Get<float>();
    slope_blocks_ = blocks_[kRows * kBlockFloats];
    bias_ = {ramp_.template Get<float>(), ramp_.template Get<float>()[kTileK], stat(kMinusRow),
             stat(kSlopes)};
    rows_ = {stat(kMaximum),    stat(kSum),  stat(kRowBias),
             stat(kNewMaximum), stat(kTile), stat(kScratch)};
    fill_index(bias_, t_.row_step);
    for (int32_t i = 0; i < kSlots; ++i) SetFlag<HardEvent::V_MTE2>(kScoreSlot + i);
    SetFlag<HardEvent::V_MTE2>(kProductSlot);
    SetFlag<HardEvent::MTE3_V>(kWeightsSlot);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    for (int32_t index = core; index < t_.tasks; index += t_.blocks) run(tasks->get(index), index);
    if (t_.parts > 1) {
      AscendC::CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kPartsReady);
      AscendC::CrossCoreWaitFlag(kPartsReady);
      for (int32_t first = core * t_.parts; first < t_.tasks; first += t_.blocks * t_.parts)
        combine(tasks->get(first), first);
    }
    for (int32_t i = 0; i < kSlots; ++i) WaitFlag<HardEvent::V_MTE2>(kScoreSlot + i);
    WaitFlag<HardEvent::V_MTE2>(kProductSlot);
    WaitFlag<HardEvent::MTE3_V>(kWeightsSlot);
  }

 private:
  // Event ids. Loads: score slots, the product buffer, slopes. Stores: the weights buffer, results.
  static constexpr int32_t kScoreSlot = 0, kProductSlot = kSlots, kSlopesSlot = kSlots + 1;
  static constexpr int32_t kWeightsSlot = 0, kResultSlot = 1;
  // Rows of the statistics buffer; the factors of two tiles are alive at once.
  enum Stat {
    kMaximum,
    kSum,
    kNewMaximum,
    kRowBias,
    kTile,
    kScratch,
    kFactor,
    kFactorOdd,
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

  __aicore__ inline RowBlock begin(const Task& task) {
    RowBlock block = row_block(t_, task, AscendC::GetSubBlockIdx());
    const int32_t slope = t_.row_step ? task.head : task.head * t_.len_q + block.first;
    if (block.rows > 0) block.slope = g_.slopes.GetValue(slope);
    block.anchor = anchor_of(t_, block);
    if (block.rows > 0) start(block, slope);
    return block;
  }

  __aicore__ inline void run(const Task& task, int32_t index) {
    const RowBlock block = begin(task);
    const int32_t tiles = task.tiles.end - task.tiles.first;
    if (tiles > 0) load_scores(block);
    for (int32_t i = 0; i < tiles; ++i) {
      weights(block, (task.tiles.first + i) * kTileK);
      if (i + 1 < tiles) load_scores(block);
      if (i > 0) update(block);
    }
    if (tiles > 0) update(block);
    if (block.rows == 0) return;
    if (t_.parts > 1) {
      store_part(block, index);
    } else {
      store(task, block);
    }
  }

  __aicore__ inline void start(const RowBlock& block, int32_t slope) {
    if (t_.row_step) {
      AscendC::Muls(bias_.ramp, bias_.index, block.slope, kTileK);
      AscendC::Duplicate(bias_.slopes, block.slope, block.rows);
    } else {
      SetFlag<HardEvent::V_MTE2>(kSlopesSlot);
      WaitFlag<HardEvent::V_MTE2>(kSlopesSlot);
      AscendC::DataCopyPad(bias_.slopes, g_.slopes[slope],
                           AscendC::DataCopyExtParams(1, block.rows * kFloatBytes, 0, 0, 0),
                           AscendC::DataCopyPadExtParams<float>());
      SetFlag<HardEvent::MTE2_V>(kSlopesSlot);
      WaitFlag<HardEvent::MTE2_V>(kSlopesSlot);
    }
    start_rows(rows_);
    AscendC::Duplicate(acc_.template Get<float>(), 0.0f, block.rows * width_);
    vector_barrier();
  }

  // Next score tile into UB.
  __aicore__ inline void load_scores(const RowBlock& block) {
    const int32_t slot = loaded_++ % kSlots;
    AscendC::CrossCoreWaitFlag(kScoresReady);
    if (block.rows == 0) return;
    WaitFlag<HardEvent::V_MTE2>(kScoreSlot + slot);
    AscendC::DataCopy(
        score_tile(slot),
        g_.scores[slot * kTileQ * kTileK + AscendC::GetSubBlockIdx() * kRows * kTileK],
        block.rows * kTileK);
    SetFlag<HardEvent::MTE2_V>(kScoreSlot + slot);
  }

  // One step of online softmax: scores in UB -> weights in global memory, statistics updated.
  __aicore__ inline void weights(const RowBlock& block, int32_t key) {
    const int32_t slot = weighted_++ % kSlots;
    if (block.rows > 0) {
      LocalTensor<float> s = score_tile(slot);
      LocalTensor<T> p = weights_.template Get<T>();
      WaitFlag<HardEvent::MTE2_V>(kScoreSlot + slot);
      AscendC::Muls(s, s, t_.scale, block.rows * kTileK);
      vector_barrier();
      WaitFlag<HardEvent::MTE3_V>(kWeightsSlot);
      add_bias(s, stat(kRowBias), p.template ReinterpretCast<float>(), blocks_, slope_blocks_,
               bias_, t_, block, side_of(t_, block, key), key);
      apply_mask(s, t_, block, key);
      new_maximum(rows_, stat(kFactor + slot), blocks_, s, block.rows);
      exponentials(s, blocks_, block.rows);
      AscendC::Cast(p, s, AscendC::RoundMode::CAST_RINT, block.rows * kTileK);
      row_sum(stat(kTile), s, stat(kScratch), block.rows);
      add_to_sum(rows_, stat(kFactor + slot), stat(kTile), block.rows);
      SetFlag<HardEvent::V_MTE2>(kScoreSlot + slot);
      SetFlag<HardEvent::V_MTE3>(kWeightsSlot);
      WaitFlag<HardEvent::V_MTE3>(kWeightsSlot);
      AscendC::DataCopy(
          g_.weights[slot * kTileQ * kTileK + AscendC::GetSubBlockIdx() * kRows * kTileK], p,
          block.rows * kTileK);
      SetFlag<HardEvent::MTE3_V>(kWeightsSlot);
      vector_barrier();
    }
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kWeightsReady);
  }

  // acc = acc * factor + product of the tile before last.
  __aicore__ inline void update(const RowBlock& block) {
    const int32_t slot = updated_++ % kSlots;
    AscendC::CrossCoreWaitFlag(kProductReady);
    if (block.rows == 0) return;
    spread(blocks_, stat(kFactor + slot), block.rows);
    vector_barrier();
    accumulate(g_.product[int64_t{slot} * kTileQ * width_ + half_rows()], block.rows, false);
  }

  // First element of this core's rows in a [kTileQ, width_] tile.
  __aicore__ inline int64_t half_rows() {
    return int64_t{AscendC::GetSubBlockIdx()} * kRows * width_;
  }

  // acc = acc * blocks_ + source [rows, width_], the latter times slope_blocks_ if weighted.
  __aicore__ inline void accumulate(const GlobalTensor<float>& source, int32_t rows,
                                    bool weighted) {
    LocalTensor<float> acc = acc_.template Get<float>(), product = product_.template Get<float>();
    multiply_rows(acc, blocks_, rows, width_, width_);
    for (int32_t c = 0; c < width_; c += kStep) {
      const int32_t cols = min_of(kStep, width_ - c);
      WaitFlag<HardEvent::V_MTE2>(kProductSlot);
      AscendC::DataCopyPad(
          product, source[c],
          AscendC::DataCopyExtParams(rows, cols * kFloatBytes, (width_ - cols) * kFloatBytes, 0, 0),
          AscendC::DataCopyPadExtParams<float>());
      SetFlag<HardEvent::MTE2_V>(kProductSlot);
      WaitFlag<HardEvent::MTE2_V>(kProductSlot);
      if (weighted) multiply_rows(product, slope_blocks_, rows, cols, cols);
      vector_barrier();
      for (int32_t x = 0; x < cols; x += kLanes) {
        AscendC::Add(acc[c + x], acc[c + x], product[x], min_of(kLanes, cols - x), rows,
                     by_tile(width_, cols));
      }
      SetFlag<HardEvent::V_MTE2>(kProductSlot);
    }
    vector_barrier();
  }

  // Where part `index` leaves its accumulator [kTileQ, width_], maximum [kTileQ], sum [kTileQ].
  __aicore__ inline GlobalTensor<float> part(int32_t index) {
    return g_.parts[int64_t{index} * kTileQ * (width_ + 2)];
  }
  __aicore__ inline int64_t part_maximum() {
    return int64_t{kTileQ} * width_ + AscendC::GetSubBlockIdx() * kRows;
  }

  __aicore__ inline void store_part(const RowBlock& block, int32_t index) {
    SetFlag<HardEvent::V_MTE3>(kResultSlot);
    WaitFlag<HardEvent::V_MTE3>(kResultSlot);
    AscendC::DataCopy(part(index)[half_rows()], acc_.template Get<float>(), block.rows * width_);
    AscendC::DataCopy(part(index)[part_maximum()], stat(kMaximum), kRows);
    AscendC::DataCopy(part(index)[part_maximum() + kTileQ], stat(kSum), kRows);
    SetFlag<HardEvent::MTE3_V>(kResultSlot);
    WaitFlag<HardEvent::MTE3_V>(kResultSlot);
  }

  // One query tile from its parts, in their order.
  __aicore__ inline void combine(const Task& task, int32_t first) {
    const RowBlock block = begin(task);
    if (block.rows == 0) return;
    const LocalTensor<float> weight = stat(kFactorOdd);
    for (int32_t i = first; i < first + t_.parts; ++i) {
      SetFlag<HardEvent::V_MTE2>(kSlopesSlot);
      WaitFlag<HardEvent::V_MTE2>(kSlopesSlot);
      AscendC::DataCopy(stat(kRowBias), part(i)[part_maximum()], kRows);
      AscendC::DataCopy(stat(kTile), part(i)[part_maximum() + kTileQ], kRows);
      SetFlag<HardEvent::MTE2_V>(kSlopesSlot);
      WaitFlag<HardEvent::MTE2_V>(kSlopesSlot);
      AscendC::Adds(stat(kNewMaximum), stat(kRowBias), 0.0f, block.rows);
      vector_barrier();
      raise_maximum(rows_, stat(kFactor), block.rows);
      AscendC::Sub(weight, stat(kRowBias), stat(kMaximum), block.rows);
      vector_barrier();
      AscendC::Exp(weight, weight, block.rows);
      vector_barrier();
      AscendC::Mul(stat(kTile), stat(kTile), weight, block.rows);
      spread(blocks_, stat(kFactor), block.rows);
      spread(slope_blocks_, weight, block.rows);
      vector_barrier();
      add_to_sum(rows_, stat(kFactor), stat(kTile), block.rows);
      accumulate(part(i)[half_rows()], block.rows, true);
    }
    store(task, block);
  }

  // out = acc / sum, lse = maximum + log(sum), with the anchor taken out again. Rows that saw no
  // key: 0 and -inf.
  __aicore__ inline void store(const Task& task, const RowBlock& block) {
    LocalTensor<float> acc = acc_.template Get<float>(), lse = stat(kLse);
    log_of_sum(rows_, lse, block.rows);
    spread(blocks_, stat(kSum), block.rows);
    vector_barrier();
    divide_rows(acc, blocks_, block.rows, width_);
    AscendC::Add(lse, lse, stat(kMaximum), block.rows);
    vector_barrier();
    // The bias of the anchor distance, which the scores were computed without.
    AscendC::Muls(stat(kScratch), bias_.slopes, static_cast<float>(block.anchor), block.rows);
    vector_barrier();
    AscendC::Add(lse, lse, stat(kScratch), block.rows);
    vector_barrier();
    const int32_t blind = rows_without_keys(block);
    if (blind > 0) AscendC::Duplicate(lse, -__builtin_huge_valf(), blind);
    LocalTensor<T> rounded = borrow_score_slot();
    AscendC::Cast(rounded, acc, AscendC::RoundMode::CAST_RINT, block.rows * width_);
    SetFlag<HardEvent::V_MTE3>(kResultSlot);
    WaitFlag<HardEvent::V_MTE3>(kResultSlot);
    const uint32_t row_bytes = t_.head_dim * kHalfBytes;
    AscendC::DataCopyPad(
        g_.out[task.batch * t_.q.batch + task.head * t_.q.head + block.first * t_.q.row], rounded,
        AscendC::DataCopyExtParams(block.rows, row_bytes, 0, t_.q.row * kHalfBytes - row_bytes, 0));
    AscendC::DataCopyPad(
        g_.lse[(int64_t{task.batch} * t_.heads_q + task.head) * t_.len_q + block.first], lse,
        AscendC::DataCopyExtParams(1, block.rows * kFloatBytes, 0, 0, 0));
    SetFlag<HardEvent::MTE3_V>(kResultSlot);
    WaitFlag<HardEvent::MTE3_V>(kResultSlot);
    SetFlag<HardEvent::V_MTE2>(kScoreSlot);
    vector_barrier();
  }

  __aicore__ inline int32_t rows_without_keys(const RowBlock& block) {
    if (block.span.kv_end <= block.span.kv_start) return block.rows;
    if (!t_.causal) return 0;
    if (!t_.row_step) return block.position < block.span.kv_start ? block.rows : 0;
    return max_of(0, min_of(block.rows, block.span.kv_start - block.position));
  }

  // Score slot 0 as staging for the rounded output: taken from the loads (MTE2) by the same flags
  // they use among themselves.
  __aicore__ inline LocalTensor<T> borrow_score_slot() {
    WaitFlag<HardEvent::V_MTE2>(kScoreSlot);
    SetFlag<HardEvent::MTE2_V>(kScoreSlot);
    WaitFlag<HardEvent::MTE2_V>(kScoreSlot);
    return score_tile(0).template ReinterpretCast<T>();
  }

  AttentionTiling t_;
  FwdTensors<T> g_;
  RampBuffers bias_;
  SoftmaxRows rows_;
  LocalTensor<float> blocks_, slope_blocks_;
  int32_t width_;
  int32_t loaded_ = 0, weighted_ = 0, updated_ = 0;  // tiles so far; the slot is their parity
  TBuf<TPosition::VECIN> scores_, product_;
  TBuf<TPosition::VECOUT> weights_, stats_;
  TBuf<TPosition::VECCALC> acc_, broadcast_, ramp_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_ATTENTION_FWD_H_
