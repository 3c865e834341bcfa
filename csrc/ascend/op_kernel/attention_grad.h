// Backward pass of fused ALiBi attention on one AI Core of an Atlas A2. The weights are recomputed
// from lse.
//   p_ij  = exp(s_ij - lse_i)        dp_ij   = <dout_i, v_j>
//   ds_ij = p_ij (dp_ij - delta_i)   delta_i = <dout_i, out_i> - dlse_i
//   dv_j  = sum_i p_ij dout_i        dk_j    = scale sum_i ds_ij q_i
//   dq_i  = scale sum_j ds_ij k_j    dslope  = sum_ij ds_ij dbias/dslope
//
// Two phases in one launch, without any exchange between AI Cores: phase kKeys owns key tiles and
// sums dk, dv over the query tiles (and over the query heads of a group), phase kQueries owns query
// tiles and sums dq and the slope gradient over the key tiles. Recomputing S and dP in both costs
// two products more (7 instead of 5) and buys a fixed order of summation: every sum belongs to one
// core, so results are the same bits every time.
//
// Per pair of tiles, with the same hand-over through global memory and the same argument for two
// slots as in attention_fwd.h:
//   cube    S = Q K^T, dP = dO V^T                  [128, 128] float each, two pairs ahead
//   vector  P and dS, rounded to 16 bit             (kQueries: dS, and sums for the slope gradient)
//   cube    dV += P^T dO, dK += dS^T Q   or   dQ += dS K
// The sums live in global memory and grow by the store pipe's atomic add, which costs the vector
// cores nothing; after the last pair of a task they scale, round and store them.
#ifndef ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_H_
#define ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_H_

#include "bias_mask.h"
#include "cube_unit.h"
#include "tile_pairs.h"

namespace alibi {
namespace ascend {

// Cross-core flags.
constexpr uint16_t kTilesReady = 0;  // S and dP
constexpr uint16_t kGradsReady = 1;  // P and dS
constexpr uint16_t kSumsReady = 2;   // all pairs of the task are in
constexpr uint8_t kCubeAndVectors = 2;

template <typename T>
struct GradTensors {
  GlobalTensor<T> q;            // [B, Hq, Sq, D] or [B, Sq, Hq, D]
  GlobalTensor<T> k;            // [B, Hkv, Sk, D] or [B, Sk, Hkv, D]
  GlobalTensor<T> v;            // like k
  GlobalTensor<float> slopes;   // [Hq]
  GlobalTensor<float> lse;      // [B, Hq, Sq]
  GlobalTensor<float> delta;    // [B, Hq, Sq]
  GlobalTensor<T> dout;         // like q
  GlobalTensor<T> dq;           // like q
  GlobalTensor<T> dk;           // like k
  GlobalTensor<T> dv;           // like k
  GlobalTensor<float> dslopes;  // [B, Hq, Sq], to be summed over batch and rows
  GlobalTensor<float> scores;   // workspace of this core, see tiling.h
  GlobalTensor<float> weight_grads;
  GlobalTensor<T> weights;
  GlobalTensor<T> score_grads;
  GlobalTensor<float> sums;
};

template <typename T>
class GradCube {
 public:
  __aicore__ inline void Init(const AttentionTiling& tiling, const GradTensors<T>& tensors,
                              TPipe* pipe) {
    t_ = tiling;
    g_ = tensors;
    width_ = round_up(t_.head_dim, kFractal);
    tile_ = kTileQ * width_;
    pipe->InitBuffer(fixed_, 2 * tile_ * kHalfBytes);
    pipe->InitBuffer(moving_, kSlots * 2 * tile_ * kHalfBytes);
    pipe->InitBuffer(weights_, 2 * kTileQ * kTileK * kHalfBytes);
    cube_.Init(pipe, kWeightsSlot + 1);
  }

  __aicore__ inline void Process(TaskList* tasks, int32_t core) {
    run(tasks, Phase::kKeys, core);
    run(tasks, Phase::kQueries, core);
    cube_.finish();
  }

 private:
  // L1 slots: the operands of a task, those of a pair (two slots), P and dS of a pair.
  static constexpr int32_t kFixedSlot = 0, kMovingSlot = 1, kWeightsSlot = kMovingSlot + kSlots;

  // The four operands of a pair in L1.
  struct Tiles {
    LocalTensor<T> query, dout, key, value;
    int32_t rows, keys;
  };

  __aicore__ inline void run(TaskList* tasks, Phase phase, int32_t core) {
    PairCursor ahead, behind;
    ahead.Init(tasks, t_, phase, core);
    behind.Init(tasks, t_, phase, core);
    for (int32_t n = 0; n < kSlots && ahead.valid(); ++n, ahead.advance()) {
      load(ahead, phase, n);
      score_products(ahead, phase, n);
    }
    for (int32_t n = 0; behind.valid(); ++n, behind.advance()) {
      const int32_t slot = n % kSlots;
      AscendC::CrossCoreWaitFlag(kGradsReady);
      gradient_products(behind, phase, slot);
      cube_.release(kMovingSlot + slot);
      if (behind.last()) AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kSumsReady);
      if (!ahead.valid()) continue;
      load(ahead, phase, slot);
      score_products(ahead, phase, slot);
      ahead.advance();
    }
  }

  __aicore__ inline Tiles tiles_of(const TilePair& pair, Phase phase, int32_t slot) {
    LocalTensor<T> fixed = fixed_.template Get<T>(),
                   moving = moving_.template Get<T>()[slot * 2 * tile_];
    const int32_t rows = pair.task.rows, keys = min_of(kTileK, t_.len_k - pair.key_tile * kTileK);
    if (phase == Phase::kKeys) return {moving, moving[tile_], fixed, fixed[tile_], rows, keys};
    return {fixed, fixed[tile_], moving, moving[tile_], rows, keys};
  }

  __aicore__ inline void load_queries(Tiles tiles, const TilePair& pair) {
    const int64_t offset =
        pair.task.batch * t_.q.batch + pair.task.head * t_.q.head + pair.task.row * t_.q.row;
    cube_.load(tiles.query, g_.q[offset], tiles.rows, t_.head_dim, t_.q.row);
    cube_.load(tiles.dout, g_.dout[offset], tiles.rows, t_.head_dim, t_.q.row);
  }
  __aicore__ inline void load_keys(Tiles tiles, const TilePair& pair) {
    const int64_t head = pair.task.head / (t_.heads_q / t_.heads_kv);
    const int64_t offset = pair.task.batch * t_.kv.batch + head * t_.kv.head +
                           int64_t{pair.key_tile} * kTileK * t_.kv.row;
    const KeyRange seen = seen_keys(pair.task.span, pair.key_tile * kTileK);
    cube_.load_seen(tiles.key, g_.k[offset], seen, tiles.keys, t_.head_dim, t_.kv.row);
    cube_.load_seen(tiles.value, g_.v[offset], seen, tiles.keys, t_.head_dim, t_.kv.row);
  }

  // Only score products read the operands of a task, so one slot suffices: it is free after those
  // of the task's last pair.
  __aicore__ inline void load(const PairCursor& at, Phase phase, int32_t slot) {
    const Tiles tiles = tiles_of(at.pair(), phase, slot);
    cube_.acquire(kMovingSlot + slot);
    if (phase == Phase::kKeys) {
      load_queries(tiles, at.pair());
    } else {
      load_keys(tiles, at.pair());
    }
    cube_.loaded(kMovingSlot + slot);
    if (!at.first()) return;
    cube_.acquire(kFixedSlot);
    if (phase == Phase::kKeys) {
      load_keys(tiles, at.pair());
    } else {
      load_queries(tiles, at.pair());
    }
    cube_.loaded(kFixedSlot);
  }

  __aicore__ inline void score_products(const PairCursor& at, Phase phase, int32_t slot) {
    const Tiles tiles = tiles_of(at.pair(), phase, slot);
    const int32_t rows = round_up(tiles.rows, kFractal), keys = round_up(tiles.keys, kFractal);
    cube_.use(kMovingSlot + slot);
    if (at.first()) cube_.use(kFixedSlot);
    cube_.multiply({tiles.query, rows, false}, {tiles.key, keys, true}, tiles.rows, tiles.keys,
                   t_.head_dim, g_.scores[slot * kTileQ * kTileK], kTileK);
    cube_.multiply({tiles.dout, rows, false}, {tiles.value, keys, true}, tiles.rows, tiles.keys,
                   t_.head_dim, g_.weight_grads[slot * kTileQ * kTileK], kTileK);
    if (at.last()) cube_.release(kFixedSlot);
    AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kTilesReady);
  }

  __aicore__ inline void gradient_products(const PairCursor& at, Phase phase, int32_t slot) {
    const Tiles tiles = tiles_of(at.pair(), phase, slot);
    const int32_t rows = round_up(tiles.rows, kFractal), keys = round_up(tiles.keys, kFractal);
    LocalTensor<T> weights = weights_.template Get<T>(), score_grads = weights[kTileQ * kTileK];
    const bool add = !at.first();
    cube_.acquire(kWeightsSlot);
    cube_.load(score_grads, g_.score_grads[slot * kTileQ * kTileK], tiles.rows, tiles.keys, kTileK);
    if (phase == Phase::kKeys)
      cube_.load(weights, g_.weights[slot * kTileQ * kTileK], tiles.rows, tiles.keys, kTileK);
    cube_.loaded(kWeightsSlot);
    cube_.use(kWeightsSlot);
    if (phase == Phase::kKeys) {
      cube_.multiply({score_grads, rows, true}, {tiles.query, rows, false}, tiles.keys, t_.head_dim,
                     tiles.rows, g_.sums, width_, add);
      cube_.multiply({weights, rows, true}, {tiles.dout, rows, false}, tiles.keys, t_.head_dim,
                     tiles.rows, g_.sums[tile_], width_, add);
    } else {
      cube_.multiply({score_grads, rows, false}, {tiles.key, keys, false}, tiles.rows, t_.head_dim,
                     tiles.keys, g_.sums, width_, add);
    }
    cube_.release(kWeightsSlot);
  }

  AttentionTiling t_;
  GradTensors<T> g_;
  CubeUnit<T> cube_;
  int32_t width_;  // head_dim rounded up to whole fractals
  int32_t tile_;   // elements of a [128, width_] tile
  TBuf<TPosition::A1> fixed_, moving_, weights_;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_ATTENTION_GRAD_H_
