// Backward pass of fused ALiBi attention: P is recomputed from lse; five products in one pass.
//
//   P_ij  = exp(s_ij - lse_i)                   delta_i = <dout_i, out_i> - dlse_i
//   dS_ij = P_ij (<dout_i, v_j> - delta_i)      dslope  = sum_ij dS_ij dbias_ij
//   dq_i  = scale sum_j dS_ij k_j     dk_j = scale sum_i dS_ij q_i     dv_j = sum_i P_ij dout_i
//
// As in the forward, query rows live in the vector lanes and scores are in log2 units. For a tile
// of keys against a tile of rows, with accumulators that start from the bias ramp and from -delta:
//
//   P^T  = 2^(ramp + K Q^T + off)     dS^T = P^T (-delta + V dOut^T)           dot_keys
//   dQ^T += K^T dS^T                  a sum over keys, rows in the lanes       add_products
//   dV   += P^T dOut,  dK += dS^T Q   sums over rows, head dims in the lanes   add_outer
//
// Three phases; the items of the first two are a queue for the threads:
//   1. prepare_rows     a tile of rows: -lse, -delta, and the keys that it visits
//                       (prepare_bwd.inl.h)
//   2. AttentionChunk   a chunk of keys (key_chunks.inl.h, chunk_work.inl.h), copied once to
//                       scratch, as operands (operands.inl.h), whatever its type and strides; then
//                       the rows of all query heads that share it pass by
//   3. sum_dslopes      adds up the tiles, chunks and batch items in double precision
// A chunk and its gradients stay in the second-level cache, P and dS of a tile in the first.
//
// A row that may see nothing (lse = -inf) contributes nothing, whatever its dout, nor, pruned, does
// one that passes nothing on (prepare_bwd.inl.h). Otherwise non-finite numbers follow IEEE rules: one in
// a key reaches every row of a tile in which a row may see it.
#ifndef ALIBI_CPU_ATTENTION_BWD_INL_H_
#define ALIBI_CPU_ATTENTION_BWD_INL_H_

#include <stdint.h>
#include <string.h>

#include "chunk_work.inl.h"
#include "exp.inl.h"
#include "geometry.h"
#include "key_chunks.inl.h"
#include "micro.inl.h"
#include "micro_bwd.inl.h"
#include "parallel.h"
#include "prepare_bwd.inl.h"
#include "scores.inl.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

template <class V>
struct AttentionScratch {
  Element<V>* values;  // [chunk + kKeys][padded dim]
  float* dvalues;      // the same
  RowOperands<V> dout;
  Lane<V>*q_t, *dout_t;             // [lanes of dim][kRows]
  Element<V>* p_t;                  // [kBwdTileKeys][kRows]
  float* p_exact;                   // [kKeys][kRows]: of one group, if p_t is not float32
  float* ramp;                      // [kRampFloats]
  float *minus_lse2, *minus_delta;  // [kRows]

  void carve(Carver* carver, int dim, int64_t chunk_keys) {
    const int64_t chunk = (chunk_keys + V::kKeys) * round_up(dim, V::kWidth);
    values = carver->take<Element<V>>(chunk);
    dvalues = carver->take(chunk);
    dout.carve(carver, dim);
    q_t = carver->take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    dout_t = carver->take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    p_t = carver->take<Element<V>>(kBwdTileKeys * kRows<V>);
    if constexpr (kTerms<V> > 1) p_exact = carver->take(V::kKeys * kRows<V>);
    ramp = carver->take(kRampFloats);
    minus_lse2 = carver->take(kRows<V>);
    minus_delta = carver->take(kRows<V>);
  }
};

template <class V>
int64_t attention_scratch_floats(int dim, int64_t chunk_keys) {
  Carver carver{nullptr, 0};
  ChunkScratch<V>().carve(&carver, dim, chunk_keys);
  AttentionScratch<V>().carve(&carver, dim, chunk_keys);
  return carver.used;
}

template <class V>
class AttentionChunk : public ChunkWork<V, AlibiAttentionBwdArgs, AttentionChunk<V>> {
  using Base = ChunkWork<V, AlibiAttentionBwdArgs, AttentionChunk<V>>;
  using Reg = typename V::Reg;
  using Base::args_, Base::b_, Base::call_, Base::dim_, Base::padded_, Base::problem_, Base::w_;

 public:
  static constexpr float kUnit = kWeightUnit<V>;  // of P and dS

  AttentionChunk(const ChunkCall<AlibiAttentionBwdArgs>& call, int64_t unit, float* scratch)
      : Base(call, unit) {
    Carver carver{scratch, 0};
    w_.carve(&carver, dim_, call.chunks.keys);
    own_.carve(&carver, dim_, call.chunks.keys);
  }

  void load_keys() {
    this->load_head_keys(args_.v, own_.values);
    this->clear_keys(own_.dvalues);
  }

  void add_keys() { this->add_head_keys(own_.dvalues, 1.0f / kUnit, args_.dv, call_.key_sums[1]); }

  void load_rows(const RowTile& rows, int64_t head, int64_t h) {
    const int64_t first = head * problem_.len_q + rows.row0;
    bool blind = false;
    for (int i = 0; i < kRows<V>; ++i) {
      const bool exists = i < rows.rows;
      own_.minus_lse2[i] = exists ? call_.row_values[kMinusLse2][first + i] : -__builtin_inff();
      own_.minus_delta[i] = exists ? call_.row_values[kMinusDelta][first + i] : 0.0f;
      blind |= exists && own_.minus_lse2[i] == -__builtin_inff();
    }
    load_operands(args_.q, h, rows, blind, scale2(), w_.q, own_.q_t);
    load_operands(args_.dout, h, rows, blind, 1.0f, own_.dout, own_.dout_t);
  }

  void fetch_rows(int64_t h, const HeadView& sum, int64_t begin, int64_t end, int64_t groups) {
    const int32_t dtype = problem_.dtype;
    fetch_.begin(from_row(head_view(args_.q, dtype, b_, h), begin),
                 from_row(head_view(args_.dout, dtype, b_, h), begin), from_row(sum, begin),
                 end - begin, dim_, groups);
  }

  // P^T and dS^T of a tile. On a causal diagonal, row vectors wholly before a group of keys are
  // left out.
  void compute_tile(const RowTile& rows, const KeyTile& tile) {
    const TileBias bias = tile_bias(rows, tile);
    const bool masked = tile.diagonal && problem_.causal != 0;
    const float factor = Operands<V>::ramp_factor(scale2());
    if (!tile.diagonal) fill_ramp<V>(bias, tile.count, factor, own_.ramp);
    const int64_t ahead = rows.pos0 - tile.begin;
    slope_sum_ = V::zero();
    if constexpr (V::kParts > 1) {
      if (!tile.diagonal) {
        return with_count<V::kRowVecs>(rows.vecs, [&](auto n) {
          linear_tile<decltype(n)::value>(tile, bias, static_cast<float>(ahead));
        });
      }
    }
    for (int k0 = 0; k0 < tile.count; k0 += V::kKeys) {
      fetch_.step();
      const int first = masked ? (k0 - static_cast<int>(ahead)) / V::kWidth : 0;
      const int lane = first * V::kWidth;
      const Group group{this->key_offset(tile.begin + k0), k0, lane, tile.count - k0,
                        static_cast<float>(ahead + lane - k0)};
      with_count<V::kRowVecs>(rows.vecs - first, [&](auto n) {
        constexpr int N = decltype(n)::value;
        if (tile.diagonal) {
          diagonal_group<N>(group, rows.slope2 * factor, masked);
        } else if constexpr (V::kParts == 1) {
          linear_group<N>(group, bias);
        }
      });
    }
  }

  float slope_sum(const RowTile&, const KeyTile&) const { return V::reduce_add(slope_sum_); }

  void add_strip(const RowTile& rows, int begin, int count, int lane, int64_t key) {
    add_outer<V>(own_.p_t + begin * kRows<V> + lane, own_.dout.from(lane, padded_), padded_,
                 lanes_of<V>(rows.rows - lane), count, padded_, own_.dvalues + key, padded_);
  }

 private:
  struct NoMask {
    ALIBI_INLINE Reg operator()(int, int, Reg x) const { return x; }
  };
  static constexpr NoMask kNoMask{};

  // What one call of the micro-kernels works on: kKeys keys, from key k0 of the tile on, and row
  // vectors from row `lane` on.
  struct Group {
    int64_t key;  // offset of the first key in the copies
    int k0, lane;
    int keys;  // what is left of the tile: fewer than kKeys in its last group, others are padding
    float ahead;  // position of row `lane` minus that of the first key
  };

  float scale2() const { return problem_.scale * kLog2E; }

  // The rows of q or dout in both forms; `blind`: some of them see nothing and become 0. Lanes of
  // several rows are made from the tensor itself, unless there are such rows.
  void load_operands(const AlibiTensor& tensor, int64_t h, const RowTile& rows, bool blind,
                     float factor, const RowOperands<V>& operands, Lane<V>* transposed) const {
    HeadView head = from_row(head_view(tensor, problem_.dtype, b_, h), rows.row0);
    if (kTerms<V> == 1 || blind) {
      copy_operand_rows<V>(head, 0, rows.rows, dim_, operands.rows);
      for (int i = 0; blind && i < rows.rows; ++i) {
        if (own_.minus_lse2[i] != -__builtin_inff()) continue;
        memset(operands.rows + i * padded_, 0, sizeof(*operands.rows) * padded_);
      }
      head = {operands.rows, padded_, Operands<V>::kDtype};
    }
    load_transposed<V>(head, 0, rows.rows, dim_, factor, transposed);
    operands.pair(head, rows.rows, dim_);
  }

  // For each row vector, what the ramp leaves of the bias, less lse.
  template <int N>
  void row_offsets(const TileBias& bias, Reg (&off)[N]) const {
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      off[v] = V::add(anchor_bias<V>(bias, lane), V::load(own_.minus_lse2 + lane));
    }
  }

  // A group off the diagonal: the bias is the ramp and one number per row.
  template <int N>
  void linear_group(const Group& g, const TileBias& bias) {
    Acc<V, N> acc;
    Reg off[N];
    row_offsets<N>(bias, off);
    start_from_keys<V>(own_.ramp + g.k0, acc);
    finish_group<N>(g, acc, off, kNoMask);
    sum_slope<N>(g.ahead, acc);
  }

  // A tile off the diagonal, where registers hold two parts of a group: beside the second product of
  // a part its scores become weights, and beside the first product of the next one dP becomes dS.
  template <int N>
  void linear_tile(const KeyTile& tile, const TileBias& bias, float ahead) {
    constexpr int kPart = V::kKeys / V::kParts, kPieces = kPart / kTerms<V> * N;
    Reg off[N], s[kPart][N], d[kPart][N];
    row_offsets<N>(bias, off);
    const int end = round_up(tile.count, V::kKeys);
    for (int k0 = 0; k0 < end; k0 += kPart) {
      if (k0 % V::kKeys == 0) fetch_.step();
      const int64_t key = this->key_offset(tile.begin + k0);
      start_from_keys<V>(own_.ramp + k0, s);
      dot_keys_beside<V, kPieces, kAsIs>(own_.q_t, w_.keys + key, padded_, dim_, s, [&](int piece) {
        if (k0 > 0) finish_piece<N>(k0 - kPart, 0, piece, d, kNoMask);
      });
      if (k0 > 0) sum_slope<N>(ahead - static_cast<float>(k0 - kPart), d);
      start_from_rows<V>(own_.minus_delta, d);
      dot_keys_beside<V, kPieces, kAsIs>(
          own_.dout_t, own_.values + key, padded_, dim_, d,
          [&](int piece) { weigh_piece<N>(k0, 0, piece, off, s, kNoMask); });
    }
#pragma GCC unroll 16
    for (int piece = 0; piece < kPieces; ++piece) {
      finish_piece<N>(end - kPart, 0, piece, d, kNoMask);
    }
    sum_slope<N>(ahead - static_cast<float>(end - kPart), d);
  }

  // A group on the diagonal: bias and mask pair by pair. `slope` is in the units of the accumulators.
  template <int N>
  void diagonal_group(const Group& g, float slope, bool masked) {
    Acc<V, N> acc;
    Reg off[N], row[N];
    for (int v = 0; v < N; ++v) {
      off[v] = V::load(own_.minus_lse2 + g.lane + v * V::kWidth);
      row[v] = V::add(V::iota(), V::set1(g.ahead + static_cast<float>(v * V::kWidth)));
#pragma GCC unroll 8
      for (int k = 0; k < V::kKeys; ++k) {
        const Reg distance = V::sub(row[v], V::set1(static_cast<float>(k)));
        acc[k][v] = V::mul(V::set1(-slope), V::abs(distance));
      }
    }
    finish_group<N>(g, acc, off, [&](int k, int v, Reg x) {
      const Reg seen = V::select(V::lt(row[v], V::set1(static_cast<float>(k))), V::zero(), x);
      return masked ? seen : x;
    });
    if (args_.dslopes == nullptr) return;
    clear_padding<V, N>(g.keys, acc);
    slope_sum_ = add_absolute_distances<V, N>(acc, g.ahead, slope_sum_);
  }

  // acc holds the bias, and dS^T afterwards; off is the rest of the bias less lse; `mask` zeroes what
  // the row may not see.
  template <int N, class Mask>
  ALIBI_INLINE void finish_group(const Group& g, Acc<V, N>& acc, const Reg (&off)[N],
                                 const Mask& mask) {
    constexpr int kPieces = V::kKeys / kTerms<V> * N;
    dot_keys<V, N>(own_.q_t + g.lane, w_.keys + g.key, padded_, dim_, acc);
#pragma GCC unroll 32
    for (int piece = 0; piece < kPieces; ++piece) {
      weigh_piece<N>(g.k0, g.lane, piece, off, acc, mask);
    }
    start_from_rows<V>(own_.minus_delta + g.lane, acc);
    dot_keys<V, N>(own_.dout_t + g.lane, own_.values + g.key, padded_, dim_, acc);
#pragma GCC unroll 32
    for (int piece = 0; piece < kPieces; ++piece) {
      finish_piece<N>(g.k0, g.lane, piece, acc, mask);
    }
  }

  // A piece is one row vector and kTerms of the keys from number k0 of the tile on. Its scores become P.
  template <int N, int K, class Mask>
  ALIBI_INLINE void weigh_piece(int k0, int lane, int piece, const Reg (&off)[N],
                                const Reg (&s)[K][N], const Mask& mask) {
    const int k = piece / N * kTerms<V>, v = piece % N, row = lane + v * V::kWidth;
    Reg p[kTerms<V>];
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      p[t] = Operands<V>::score(s[k + t][v], V::set1(scale2()), off[v]);
    }
    weigh_each<V>(p);
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      p[t] = mask(k + t, v, p[t]);
      V::store(exact(k0 + k + t, row), p[t]);
      if constexpr (kTerms<V> > 1) {
        Operands<V>::store(own_.p_t + (k0 + k + t) * kRows<V> + row, p[t]);
      }
    }
  }

  // Its dP - delta becomes dS.
  template <int N, int K, class Mask>
  ALIBI_INLINE void finish_piece(int k0, int lane, int piece, Reg (&d)[K][N], const Mask& mask) {
    const int k = piece / N * kTerms<V>, v = piece % N, row = lane + v * V::kWidth;
    Reg ds[kTerms<V>];
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      const Reg p = V::load(exact(k0 + k + t, row));
      ds[t] = d[k + t][v] = mask(k + t, v, V::mul(d[k + t][v], p));
    }
    store_ds(k0 + k, row, ds);
  }

  // Adds keys off the diagonal, the first of which stands `ahead` positions before the first row, to
  // the sum for the slope. What pads the last group has weights of 0.
  template <int N, int K>
  ALIBI_INLINE void sum_slope(float ahead, const Reg (&ds)[K][N]) {
    if (args_.dslopes != nullptr) slope_sum_ = add_distances<V>(ds, ahead, slope_sum_);
  }

  // P of key k of the tile as float32. Where p_t is not that, the weights of one group are kept.
  ALIBI_INLINE float* exact(int k, int lane) const {
    if constexpr (kTerms<V> == 1) {
      return own_.p_t + k * kRows<V> + lane;
    } else {
      return own_.p_exact + k % V::kKeys * kRows<V> + lane;
    }
  }

  // dS of kTerms keys from number k of the tile on, in every form that is needed.
  ALIBI_INLINE void store_ds(int k, int lane, const Reg (&ds)[kTerms<V>]) {
    Operands<V>::store(w_.ds.lanes + k / kTerms<V> * kRows<V> + lane, ds);
    if constexpr (kTerms<V> > 1) {
#pragma GCC unroll 2
      for (int t = 0; t < kTerms<V>; ++t) {
        Operands<V>::store(w_.ds.rows + (k + t) * kRows<V> + lane, ds[t]);
      }
    }
  }

  AttentionScratch<V> own_;
  RowFetch fetch_;
  Reg slope_sum_ = V::zero();  // of the tile that was computed last
};

template <class V>
void attention_chunks(const void* context, int64_t begin, int64_t end, float* scratch) {
  const auto& call = *static_cast<const AttentionBwdCall<V>*>(context);
  for (int64_t unit = begin; unit < end; ++unit) {
    AttentionChunk<V>(call.chunks, unit, scratch).run();
  }
}

template <class V>
int32_t attention_bwd(const AlibiAttentionBwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  const int dim = static_cast<int>(p.head_dim);
  KeyNormTable<V> norms(p, a.k, a.spans);
  int32_t status = norms.fill(threads);
  if (status != ALIBI_OK) return status;
  const KeyChunks chunks = cut_keys<V>(p, 4);
  const CallBuffers<V> buffers(p, chunks);
  if (!buffers.allocated()) return ALIBI_OUT_OF_MEMORY;
  const AttentionBwdCall<V> call{buffers.call(a, chunks), norms};
  const double rows = static_cast<double>(p.batch) * p.heads_q * p.len_q;
  status = run_items(p.batch * p.heads_q * call.chunks.row_tiles, threads, 4.0 * rows * dim,
                     PrepareScratch<V>(nullptr, dim).floats, &prepare_rows<V>, &call);
  if (status != ALIBI_OK) return status;
  status =
      run_together(chunks.units(), chunks.together(threads), threads, 10.0 * rows * p.len_k * dim,
                   attention_scratch_floats<V>(dim, chunks.keys), &attention_chunks<V>, &call);
  if (status == ALIBI_OK && a.dslopes != nullptr) sum_dslopes(call.chunks);
  return status;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ATTENTION_BWD_INL_H_
