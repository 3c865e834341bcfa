// Backward pass of the attention weights op: the gradient dp of P = softmax(scale * Q K^T + bias)
// goes back to q, k and slopes.
//
//   dS_ij = P_ij (dp_ij - center_i)     center_i = sum_j P_ij dp_ij
//   dq_i = scale sum_j dS_ij k_j     dk_j = scale sum_i dS_ij q_i     dslope = sum_ij dS_ij
//   dbias_ij
//
// P and dp are read twice, straight from the tensors. Phase 1 takes center_i for a tile of rows;
// phase 2 forms the tiles of dS, transposes them so that query rows lie in the vector lanes, and
// leaves the rest to chunk_work.inl.h. Keys that a row may not see are left out of both, whatever P
// and dp hold there.
#ifndef ALIBI_CPU_WEIGHTS_BWD_INL_H_
#define ALIBI_CPU_WEIGHTS_BWD_INL_H_

#include <stdint.h>
#include <string.h>

#include "chunk_work.inl.h"
#include "geometry.h"
#include "key_chunks.inl.h"
#include "micro.inl.h"
#include "parallel.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

// What is kept about each row: indices into ChunkCall::row_values.
enum : int { kCenter, kWeight };  // kWeight: sum_j P_ij, 0 for a row that sees nothing

// All keys that some row of a tile may see, and those that row i of it may see.
ALIBI_INLINE KeyRange keys_of_rows(const RowTile& rows) {
  return join(join(rows.left, rows.diagonal), rows.right);
}
ALIBI_INLINE KeyRange keys_of_row(const RowTile& rows, const AlibiProblem& p, int i) {
  const KeyRange keys = keys_of_rows(rows);
  return p.causal != 0 ? key_range(keys.begin, min_int64(keys.end, rows.pos0 + i + 1)) : keys;
}

// The sums over j of P_ij dp_ij and of P_ij, for n elements.
template <class V, class T>
void weighted_sums(const T* p, const T* dp, int64_t n, float* product, float* weight) {
  typename V::Reg products = V::zero(), weights = V::zero();
  for (int64_t j = 0; j < n; j += V::kWidth) {
    const int count = min_int(V::kWidth, n - j);
    const typename V::Reg x = V::load_first(p + j, count);
    products = V::fma(x, V::load_first(dp + j, count), products);
    weights = V::add(weights, x);
  }
  *product = V::reduce_add(products);
  *weight = V::reduce_add(weights);
}

template <class V>
void prepare_centers(const void* context, int64_t index, float*) {
  const auto& call = *static_cast<const ChunkCall<AlibiWeightsBwdArgs>*>(context);
  const AlibiWeightsBwdArgs& a = call.args;
  const AlibiProblem& problem = a.problem;
  const int64_t head = index / call.row_tiles, b = head / problem.heads_q,
                h = head % problem.heads_q;
  const RowTile rows =
      make_row_tile<V>(problem, span_of(problem, a.spans, b), a.slopes[h], index % call.row_tiles);
  const HeadView p = head_view(a.p, problem.dtype, b, h), dp = head_view(a.dp, problem.dtype, b, h);
  call.tiles[index] = {keys_of_rows(rows), 0.0};
  for (int i = 0; i < rows.rows; ++i) {
    const KeyRange keys = keys_of_row(rows, problem, i);
    const int64_t s = rows.row0 + i, row = head * problem.len_q + s;
    with_row(p, s, [&](const auto* weights) {
      const auto* gradients = static_cast<decltype(weights)>(dp.data) + s * dp.stride;
      weighted_sums<V>(weights + keys.begin, gradients + keys.begin, keys.end - keys.begin,
                       &call.row_values[kCenter][row], &call.row_values[kWeight][row]);
    });
  }
  if (call.tiles[index].keys.empty()) {
    const int dim = static_cast<int>(problem.head_dim);
    clear_rows<V>(head_view(a.dq, problem.dtype, b, h), rows.row0, rows.rows, dim);
  }
  count_work(a.options, count_tiles(rows), count_tiles(rows));
}

// sum dS_ij (j - p_i), on the diagonal |p_i - j|, over the keys of a tile. dS is 0 where a row may not
// see a key.
template <class V>
float slope_sum_of(const float* ds_t, const RowTile& rows, const KeyTile& tile) {
  typename V::Reg total = V::zero();
  for (int lane = 0; lane < rows.vecs * V::kWidth; lane += V::kWidth) {
    const int64_t ahead = rows.pos0 + lane - tile.begin;
    const typename V::Reg row = V::add(V::iota(), V::set1(static_cast<float>(ahead)));
    typename V::Reg ds_sum = V::zero(), weighted = V::zero();
    for (int k = 0; k < tile.count; ++k) {
      const typename V::Reg key = V::set1(static_cast<float>(k));
      const typename V::Reg ds = V::load(ds_t + k * kRows<V> + lane);
      if (tile.diagonal) {
        weighted = V::fma(ds, V::abs(V::sub(row, key)), weighted);
      } else {
        weighted = V::fma(ds, key, weighted);
        ds_sum = V::add(ds_sum, ds);
      }
    }
    total = V::add(total, tile.diagonal ? weighted : V::fnma(ds_sum, row, weighted));
  }
  return V::reduce_add(total);
}

template <class V>
class WeightsChunk : public ChunkWork<V, AlibiWeightsBwdArgs, WeightsChunk<V>> {
  using Base = ChunkWork<V, AlibiWeightsBwdArgs, WeightsChunk<V>>;
  using Reg = typename V::Reg;
  using Base::args_, Base::b_, Base::call_, Base::dim_, Base::padded_, Base::problem_, Base::w_;

 public:
  static constexpr float kUnit = 1.0f;

  WeightsChunk(const ChunkCall<AlibiWeightsBwdArgs>& call, int64_t unit, float* scratch)
      : Base(call, unit) {
    Carver carver{scratch, 0};
    w_.carve(&carver, dim_, call.chunks.keys);
  }

  void load_keys() {}
  void add_keys() {}
  void fetch_rows(int64_t, const HeadView&, int64_t, int64_t, int64_t) {}
  void add_strip(const RowTile&, int, int, int, int64_t) {}

  void load_rows(const RowTile& rows, int64_t head, int64_t h) {
    first_ = head * problem_.len_q + rows.row0;
    p_ = head_view(args_.p, problem_.dtype, b_, h);
    dp_ = head_view(args_.dp, problem_.dtype, b_, h);
    copy_operand_rows<V>(head_view(args_.q, problem_.dtype, b_, h), rows.row0, rows.rows, dim_,
                         w_.q.rows);
    for (int i = 0; i < rows.rows; ++i) {
      if (call_.row_values[kWeight][first_ + i] != 0.0f) continue;
      memset(w_.q.rows + i * padded_, 0, sizeof(*w_.q.rows) * padded_);
    }
  }

  // dS^T of a tile, in square blocks of kWidth rows and keys.
  void compute_tile(const RowTile& rows, const KeyTile& tile) {
    constexpr int W = V::kWidth;
    with_row(p_, rows.row0, [&](const auto* p) {
      const auto* dp = static_cast<decltype(p)>(dp_.data) + rows.row0 * dp_.stride;
      for (int i0 = 0; i0 < rows.vecs * W; i0 += W) {
        for (int k0 = 0; k0 < tile.count; k0 += W) {
          const int64_t j = tile.begin + k0;
          Reg block[W];
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) {
            block[i] = V::zero();
            if (i0 + i >= rows.rows) continue;
            const KeyRange seen = keys_of_row(rows, problem_, i0 + i);
            const int count = min_int(min_int(W, tile.count - k0), seen.end - j);
            if (count <= 0) continue;
            const Reg center = V::set1(call_.row_values[kCenter][first_ + i0 + i]);
            const Reg weight = V::load_first(p + (i0 + i) * p_.stride + j, count);
            const Reg gradient = V::load_first(dp + (i0 + i) * dp_.stride + j, count);
            block[i] = V::mul(weight, V::sub(gradient, center));
          }
          V::transpose(block);
#pragma GCC unroll 16
          for (int k = 0; k < W; ++k) V::store(w_.ds.rows + (k0 + k) * kRows<V> + i0, block[k]);
        }
      }
    });
  }

  float slope_sum(const RowTile& rows, const KeyTile& tile) const {
    return slope_sum_of<V>(w_.ds.rows, rows, tile);
  }

 private:
  HeadView p_{}, dp_{};
  int64_t first_ = 0;  // index of the tile's first row in row_values
};

template <class V>
void weights_chunk(const void* context, int64_t unit, float* scratch) {
  const auto& call = *static_cast<const ChunkCall<AlibiWeightsBwdArgs>*>(context);
  WeightsChunk<V>(call, unit, scratch).run();
}

template <class V>
int32_t weights_bwd(const AlibiWeightsBwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  const int dim = static_cast<int>(p.head_dim);
  const KeyChunks chunks = cut_keys<V>(p, 2);
  const CallBuffers<V> buffers(p, chunks);
  if (!buffers.allocated()) return ALIBI_OUT_OF_MEMORY;
  const ChunkCall<AlibiWeightsBwdArgs> call = buffers.call(a, chunks);
  const double pairs = static_cast<double>(p.batch) * p.heads_q * p.len_q * p.len_k;
  const int32_t status = run_items(p.batch * p.heads_q * call.row_tiles, threads, 4.0 * pairs, 0,
                                   &prepare_centers<V>, &call);
  if (status != ALIBI_OK) return status;
  Carver carver{nullptr, 0};
  ChunkScratch<V>().carve(&carver, dim, chunks.keys);
  const int32_t done =
      run_items(chunks.units(), threads, 4.0 * pairs * dim, carver.used, &weights_chunk<V>, &call);
  if (done == ALIBI_OK && a.dslopes != nullptr) sum_dslopes(call);
  return done;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_WEIGHTS_BWD_INL_H_
