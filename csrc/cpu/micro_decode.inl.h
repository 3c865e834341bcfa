// Products of a few rows with many keys. Here the head dim lives in the vector lanes: K and V are
// read as they lie, whatever their dtype, and a row costs one multiply-add per register of a key.
//
//   dot_rows      s[row][key] = <q[row], K[key]>                       sums of lanes, a register at a time
//   add_values    o[row][dim] = f o[row][dim] + sum_key p[row][key] V[key]    broadcast p x vector V
//
// N rows share each load. What matters is memory: keys are taken in the order in which they lie, each
// from its first to its last element, and asks for a key a little further on. Whatever does not fit in
// registers beside that (q, long rows of o) comes from the first-level cache.
#ifndef ALIBI_CPU_MICRO_DECODE_INL_H_
#define ALIBI_CPU_MICRO_DECODE_INL_H_

#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "micro.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

// The most keys of a block, which is also the distance between the rows of its scores.
constexpr int kBlockKeys = 64;

// Registers of o for each of N rows while they take in a block of values. They may be all there are, though
// values and weights need some, too: the compiler keeps a few in the first-level cache then, which costs
// less than to read the rows of values in more parts.
template <class V, int N>
constexpr int value_registers() {
  return V::kRegisters >= 8 * N ? 8 : V::kRegisters >= 4 * N ? 4 : 2;
}

// How the elements of a row are read, a register whole or its first n elements and zeros, and what
// multiplies them: as numbers, or as the terms of operands.inl.h.
template <class V>
struct Numbers {
  static constexpr int kElements = V::kWidth;
  static ALIBI_INLINE typename V::Reg mac(typename V::Reg a, typename V::Reg b, typename V::Reg c) {
    return V::fma(a, b, c);
  }
  template <class T>
  static ALIBI_INLINE typename V::Reg load(const T* p) {
    return V::load(p);
  }
  template <class T>
  static ALIBI_INLINE typename V::Reg load(const T* p, int n) {
    return V::load_first(p, n);
  }
};
template <class V>
struct Terms {
  static constexpr int kElements = V::kWidth * kTerms<V>;
  static ALIBI_INLINE typename V::Reg mac(typename V::Reg a, typename V::Reg b, typename V::Reg c) {
    return Operands<V>::mac(a, b, c);
  }
  template <class T>
  static ALIBI_INLINE typename V::Reg load(const T* p) {
    return Operands<V>::load_row(p);
  }
  template <class T>
  static ALIBI_INLINE typename V::Reg load(const T* p, int n) {
    return Operands<V>::load_row(p, n);
  }
};

// What q is decides how keys are read.
template <class V, class Q>
struct Keys : Terms<V> {};
template <class V>
struct Keys<V, float> : Numbers<V> {};

// Calls f(d, x, i) for the registers x[m] at element d of M rows, one after the other, i = 0 and 1 in
// turn. kDim is the length of the rows where the compiler knows it, or 0.
template <class V, class Read, int kDim, int M, class T, class F>
ALIBI_INLINE void for_registers(const T* const (&rows)[M], int any_dim, F&& f) {
  constexpr int kStep = Read::kElements;
  const int dim = kDim != 0 ? kDim : any_dim;
  auto take = [&](int d, int i, auto... n) {
    typename V::Reg x[M];
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m) x[m] = Read::load(rows[m] + d, n...);
    f(d, x, i);
  };
  int d = 0;
#pragma GCC unroll 8
  for (; d + 2 * kStep <= dim; d += 2 * kStep) {
    take(d, 0);
    take(d + kStep, 1);
  }
  if (d + kStep <= dim) {
    take(d, 0);
    d += kStep;
  }
  if (d < dim) take(d, 1, dim - d);
}

// Calls f(Count<kDim>()) with the head dim, if it is a usual one.
template <class F>
ALIBI_INLINE void with_dim(int dim, F&& f) {
  if (dim == 32) return f(Count<32>());
  if (dim == 64) return f(Count<64>());
  if (dim == 128) return f(Count<128>());
  f(Count<0>());
}

// Asks for the row that lies `ahead` bytes behind one that is being read. That place need not exist:
// a prefetch never faults.
struct Prefetch {
  int64_t ahead;
  int64_t bytes;  // of a row; 0: nothing
  bool near;      // into the first level of the cache instead of the second
  // For the part of the rows from element d on: the first part asks for all.
  ALIBI_INLINE Prefetch once(int d) const { return {ahead, d == 0 ? bytes : 0, near}; }
  // kUsual: a number of bytes for which there are no branches.
  template <int64_t kUsual>
  ALIBI_INLINE void ask(const void* row) const {
    if (near) {
      bytes == kUsual ? ask_lines<3>(row, kUsual) : ask_lines<3>(row, bytes);
    } else {
      bytes == kUsual ? ask_lines<2>(row, kUsual) : ask_lines<2>(row, bytes);
    }
  }

 private:
  template <int kLevel>
  ALIBI_INLINE void ask_lines(const void* row, int64_t n) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(ahead);
#pragma GCC unroll 8
    for (int64_t b = 0; b < n; b += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(begin + static_cast<uintptr_t>(b)), 0,
                         kLevel);
    }
  }
};

// Heads whose rows lie between those of the others take in the keys of a block in turns. While a head
// reads some keys, it asks for those that the head `lead` places further on will read: the one `lead`
// places before the end of a turn asks for the first keys of the next. `stride` is the distance in
// bytes between the keys of a head. Calls f(head, first key, keys, bytes to ask ahead).
template <class F>
ALIBI_INLINE void for_turns(const void* const* heads, int count, int64_t stride, int keys, int turn,
                            int lead, F&& f) {
  for (int first = 0; first < keys; first += turn) {
    int asked = lead % count;
    int64_t later = lead / count * turn * stride;
    for (int i = 0; i < count; ++i) {
      const intptr_t apart =
          reinterpret_cast<intptr_t>(heads[asked]) - reinterpret_cast<intptr_t>(heads[i]);
      f(i, first, min_int(turn, keys - first), apart + later);
      if (++asked == count) asked = 0, later += turn * stride;
    }
  }
}

// Keys whose products are formed side by side. One, because memory is fastest when rows are read one
// after the other; two where loads would limit the products of several rows: q is loaded half as often.
template <class V, int N>
constexpr int keys_at_a_time() {
  return N > 1 && V::kWidth / N > 1 && V::kWidth < 16 ? 2 : 1;
}

// sum[m][n]: lanes whose total is <q[n], keys[m]>, for N rows and M keys. Long rows have two sums, so that
// enough multiply-adds are in flight.
template <class V, int kDim, int N, int M, class Q, class T>
ALIBI_INLINE void dot_keys(const Q* q, int64_t q_stride, const T* const (&keys)[M], int dim,
                           typename V::Reg (&sum)[M][N]) {
  using Read = Keys<V, Q>;
  constexpr int kSums = N == 1 && (kDim == 0 || kDim > 4 * Read::kElements) ? 2 : 1;
  typename V::Reg acc[kSums][M][N];
#pragma GCC unroll 8
  for (int i = 0; i < kSums * M * N; ++i) acc[i / (M * N)][i / N % M][i % N] = V::zero();
  for_registers<V, Read, kDim>(keys, dim, [&](int d, const typename V::Reg(&x)[M], int i) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const typename V::Reg row = Read::load(q + n * q_stride + d);
#pragma GCC unroll 2
      for (int m = 0; m < M; ++m) {
        typename V::Reg& s = acc[i % kSums][m][n];
        s = Read::mac(x[m], row, s);
      }
    }
  });
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) {
    const int m = i / N, n = i % N;
    sum[m][n] = kSums == 1 ? acc[0][m][n] : V::add(acc[0][m][n], acc[kSums - 1][m][n]);
  }
}

// Lane i is the total of the lanes of r[i]: kWidth dot products become one register.
template <class V>
ALIBI_INLINE typename V::Reg sum_each(const typename V::Reg (&r)[V::kWidth]) {
  typename V::Reg quads[V::kWidth / 4];
#pragma GCC unroll 4
  for (int i = 0; i < V::kWidth / 4; ++i) {
    const typename V::Reg four[] = {r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]};
    quads[i] = V::sum_in_quads(four);
  }
  return V::sum_quads(quads);
}

// The scores of N rows for kWidth / N keys; where only `valid` of them exist, the others repeat the
// last one. q has rows of q_stride elements, zero beyond dim.
template <class V, int kDim, int N, class Q, class T>
void dot_group(const Q* q, int64_t q_stride, const T* keys, int64_t stride, int valid, int dim,
               const Prefetch& prefetch, float* s) {
  constexpr int W = V::kWidth, K = W / N, M = keys_at_a_time<V, N>();
  typename V::Reg acc[W];
#pragma GCC unroll 16
  for (int k = 0; k < K; k += M) {
    const T* rows[M];
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m) {
      prefetch.ask<kDim * sizeof(T)>(keys);
      rows[m] = keys;
      if (k + m + 1 < valid) keys += stride;
    }
    typename V::Reg sum[M][N];
    dot_keys<V, kDim, N, M>(q, q_stride, rows, dim, sum);
#pragma GCC unroll 8
    for (int i = 0; i < M * N; ++i) acc[i % N * K + k + i / N] = sum[i / N][i % N];
  }
  const typename V::Reg sums = sum_each<V>(acc);
  if constexpr (N == 1) {
    V::store(s, sums);
  } else {
    float lanes[W];
    V::store(lanes, sums);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) memcpy(s + n * kBlockKeys, lanes + n * K, sizeof(float) * K);
  }
}

// The same for all keys of a block and as many rows as a register has quads of lanes: the sums of a key
// become a register with a quad for each row, and those of 4 keys one of scores. The loop over keys is not
// unrolled: the CPU learns what each of its loads will read next, if there are not too many of them.
template <class V, int kDim, class Q, class T>
void dot_block(const Q* q, int64_t q_stride, const T* keys, int64_t stride, int count, int dim,
               const Prefetch& prefetch, float* s) {
  constexpr int W = V::kWidth, N = W / 4;
  float part[kBlockKeys * W];
#pragma GCC unroll 1
  for (int k = 0; k < count; ++k) {
    const T* const row[] = {keys + k * stride};
    prefetch.ask<kDim * sizeof(T)>(row[0]);
    typename V::Reg sum[1][N];
    dot_keys<V, kDim, N, 1>(q, q_stride, row, dim, sum);
    V::store(part + k * W, V::sum_quads(sum[0]));
  }
  memset(part + count * W, 0, sizeof(float) * static_cast<size_t>(round_up(count, 4) - count) * W);
  for (int k = 0; k < count; k += 4) {
    const float* p = part + k * W;
    const typename V::Reg four[] = {V::load(p), V::load(p + W), V::load(p + 2 * W),
                                    V::load(p + 3 * W)};
    float lanes[W];
    V::store(lanes, V::sum_in_quads(four));
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) memcpy(s + n * kBlockKeys + k, lanes + 4 * n, 4 * sizeof(float));
  }
}

// s[n][k] for N rows and `count` keys, and something for a few keys more.
template <class V, int kDim, int N, class Q, class T>
void dot_rows(const Q* q, int64_t q_stride, const T* keys, int64_t stride, int count, int dim,
              const Prefetch& prefetch, float* s) {
  if constexpr (N == 4 && N == V::kWidth / 4) {
    dot_block<V, kDim>(q, q_stride, keys, stride, count, dim, prefetch, s);
  } else {
    constexpr int K = V::kWidth / N;
    int k = 0;
    for (; k + K <= count; k += K) {
      dot_group<V, kDim, N>(q, q_stride, keys + k * stride, stride, K, dim, prefetch, s + k);
    }
    if (k < count) {
      dot_group<V, kDim, N>(q, q_stride, keys + k * stride, stride, count - k, dim, prefetch,
                            s + k);
    }
  }
}

constexpr float kOnes[4] = {1.0f, 1.0f, 1.0f, 1.0f};  // factors

// o[n] = factor[n] * o[n] + sum_{j < count} p[n][j] * values[j] for R registers of N rows. The sum of a
// block is formed by itself and then added: a long sum made of short ones keeps its digits.
template <class V, int N, int R, class T, class Load>
ALIBI_INLINE void add_registers(const float* p, const T* values, int64_t stride, int count,
                                const Prefetch& prefetch, const Load& load, const float* factor,
                                float* o, int64_t o_stride) {
  typename V::Reg acc[N][R];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[n][r] = V::zero();
  }
  for (int j = 0; j < count; ++j, values += stride) {
    prefetch.ask<R * V::kWidth * sizeof(T)>(values);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename V::Reg x = load(values + r * V::kWidth);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        acc[n][r] = V::fma(V::set1(p[n * kBlockKeys + j]), x, acc[n][r]);
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* out = o + n * o_stride + r * V::kWidth;
      V::store(out, V::fma(V::load(out), V::set1(factor[n]), acc[n][r]));
    }
  }
}

// The same for the whole head dim: R registers at a time, then half as many, and so on.
template <class V, int N, int R, class T>
ALIBI_INLINE void add_dims(const float* p, const T* values, int64_t stride, int count, int dim,
                           const Prefetch& prefetch, const float* factor, float* o,
                           int64_t o_stride) {
  int d = 0;
  for (; d + R * V::kWidth <= dim; d += R * V::kWidth) {
    add_registers<V, N, R>(
        p, values + d, stride, count, prefetch.once(d),
        [](const T* p) { return Numbers<V>::load(p); }, factor, o + d, o_stride);
  }
  if constexpr (R > 1) {
    if (d < dim) {
      add_dims<V, N, R / 2>(p, values + d, stride, count, dim - d, prefetch.once(d), factor, o + d,
                            o_stride);
    }
  } else if (d < dim) {
    auto load = [n = dim - d](const T* p) { return Numbers<V>::load(p, n); };
    add_registers<V, N, 1>(p, values + d, stride, count, prefetch.once(d), load, factor, o + d,
                           o_stride);
  }
}

// The same for one row whose sum, which does not fit in registers, is kept in `sum`: each value is read
// in one go.
template <class V, int kDim, class T>
void add_in_memory(const float* p, const T* values, int64_t stride, int count, int dim,
                   const Prefetch& prefetch, const float* factor, float* o, float* sum) {
  memset(sum, 0, sizeof(float) * static_cast<size_t>(round_up(dim, V::kWidth)));
  for (int j = 0; j < count; ++j, values += stride) {
    prefetch.ask<kDim * sizeof(T)>(values);
    const typename V::Reg weight = V::set1(p[j]);
    const T* const row[] = {values};
    for_registers<V, Numbers<V>, kDim>(row, dim, [&](int d, const typename V::Reg(&x)[1], int) {
      V::store(sum + d, V::fma(weight, x[0], V::load(sum + d)));
    });
  }
  for (int d = 0; d < dim; d += V::kWidth) {
    V::store(o + d, V::fma(V::load(o + d), V::set1(*factor), V::load(sum + d)));
  }
}

template <class V, int kDim, int N, class T>
void add_values(const float* p, const T* values, int64_t stride, int count, int dim,
                const Prefetch& prefetch, const float* factor, float* o, int64_t o_stride,
                float* sum) {
  constexpr int R = value_registers<V, N>();
  if (N == 1 && dim > R * V::kWidth) {
    add_in_memory<V, kDim>(p, values, stride, count, dim, prefetch, factor, o, sum);
  } else {
    add_dims<V, N, R>(p, values, stride, count, dim, prefetch, factor, o, o_stride);
  }
}

// Calls f(Count<N>(), first row) for groups of 4, 2 and 1 rows.
template <class F>
ALIBI_INLINE void for_row_groups(int64_t rows, F&& f) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) f(Count<4>(), r);
  for (; r + 2 <= rows; r += 2) f(Count<2>(), r);
  if (r < rows) f(Count<1>(), r);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_MICRO_DECODE_INL_H_
