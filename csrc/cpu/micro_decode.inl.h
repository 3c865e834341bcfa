// Products of a few rows with many keys. Here the head dim lives in the vector lanes: K and V are
// read as they lie, whatever their dtype, and a row costs one multiply-add per register of a key.
//
//   dot_rows      s[row][key]  = <q[row], K[key]>             sums of lanes taken kWidth at a time
//   add_values    o[row][dim] += sum_key p[row][key] V[key]   broadcast p x vector V
//
// N rows share each load. What matters is memory: keys are taken in the order in which they lie, and
// every load asks for the same place of a key a little further on.
#ifndef ALIBI_CPU_MICRO_DECODE_INL_H_
#define ALIBI_CPU_MICRO_DECODE_INL_H_

#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "micro.inl.h"

namespace alibi::cpu {
namespace {

// The most keys of a block, which is also the distance between the rows of its scores; and how many
// keys the prefetch is ahead.
constexpr int kBlockKeys = 64;
constexpr int kAheadKeys = 2;

// Registers of the head dim that are worked on at a time, for N rows: their part of q, or of o, has
// to fit in the register file, in the first case beside kWidth accumulators.
template <class V, int N>
constexpr int key_registers() {
  const int room = V::kKeys * V::kRowVecs;
  return room >= 24 ? 8 / N : 4 / N;
}
template <class V, int N>
constexpr int value_registers() {
  const int room = V::kKeys * V::kRowVecs;
  return room >= 8 * N ? 8 : room >= 4 * N ? 4 : 2;
}

// How a register of a key or value is read: whole, or the last n elements of a row.
template <class V>
struct LoadAll {
  template <class T>
  ALIBI_INLINE typename V::Reg operator()(const T* p) const {
    return V::load(p);
  }
};
template <class V>
struct LoadFirst {
  int n;
  template <class T>
  ALIBI_INLINE typename V::Reg operator()(const T* p) const {
    return V::load_first(p, n);
  }
};

// Asks for the row that lies `ahead` bytes behind one that is being read. That place need not exist:
// a prefetch never faults.
struct Prefetch {
  int64_t ahead;
  int64_t bytes;  // of a row; 0: nothing
  // For the part of the rows from element d on: the first part asks for all.
  ALIBI_INLINE Prefetch once(int d) const { return {ahead, d == 0 ? bytes : 0}; }
  ALIBI_INLINE void operator()(const void* row) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(ahead);
    for (int64_t b = 0; b < bytes; b += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(begin + static_cast<uintptr_t>(b)), 0, 2);
    }
  }
};

// acc[row * K + key] += products of R registers of elements, for K = kWidth / N keys.
template <class V, int N, int R, class T, class Load>
ALIBI_INLINE void dot_registers(const float* q, int64_t q_stride, const T* keys, int64_t stride,
                                int valid, const Prefetch& prefetch, const Load& load,
                                typename V::Reg (&acc)[V::kWidth]) {
  constexpr int K = V::kWidth / N;
  typename V::Reg x[N][R];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[n][r] = V::load(q + n * q_stride + r * V::kWidth);
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    prefetch(keys);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename V::Reg key = load(keys + r * V::kWidth);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[n * K + k] = V::fma(key, x[n][r], acc[n * K + k]);
    }
    if (k + 1 < valid) keys += stride;
  }
}

// The same for the whole head dim: R registers at a time, then half as many, and so on.
template <class V, int N, int R, class T>
ALIBI_INLINE void dot_dims(const float* q, int64_t q_stride, const T* keys, int64_t stride,
                           int valid, int dim, const Prefetch& prefetch,
                           typename V::Reg (&acc)[V::kWidth]) {
  int d = 0;
  for (; d + R * V::kWidth <= dim; d += R * V::kWidth) {
    dot_registers<V, N, R>(q + d, q_stride, keys + d, stride, valid, prefetch.once(d), LoadAll<V>(),
                           acc);
  }
  if constexpr (R > 1) {
    if (d < dim) {
      dot_dims<V, N, R / 2>(q + d, q_stride, keys + d, stride, valid, dim - d, prefetch.once(d),
                            acc);
    }
  } else if (d < dim) {
    const LoadFirst<V> load{dim - d};
    dot_registers<V, N, 1>(q + d, q_stride, keys + d, stride, valid, prefetch.once(d), load, acc);
  }
}

// The scores of N rows for kWidth / N keys; where only `valid` of them exist, the others repeat the
// last one. q has rows of q_stride floats, zero beyond dim.
template <class V, int N, class T>
void dot_group(const float* q, int64_t q_stride, const T* keys, int64_t stride, int valid, int dim,
               const Prefetch& prefetch, float* s) {
  constexpr int W = V::kWidth, K = W / N;
  typename V::Reg acc[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) acc[i] = V::zero();
  dot_dims<V, N, key_registers<V, N>()>(q, q_stride, keys, stride, valid, dim, prefetch, acc);
  const typename V::Reg sums = V::sum_each(acc);
  if constexpr (N == 1) {
    V::store(s, sums);
  } else {
    float lanes[W];
    V::store(lanes, sums);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) memcpy(s + n * kBlockKeys, lanes + n * K, sizeof(float) * K);
  }
}

// s[n][k] for N rows and `count` keys, and something for the keys up to a multiple of kWidth / N.
template <class V, int N, class T>
void dot_rows(const float* q, int64_t q_stride, const T* keys, int64_t stride, int count, int dim,
              const Prefetch& prefetch, float* s) {
  constexpr int K = V::kWidth / N;
  int k = 0;
  for (; k + K <= count; k += K) {
    dot_group<V, N>(q, q_stride, keys + k * stride, stride, K, dim, prefetch, s + k);
  }
  if (k < count) {
    dot_group<V, N>(q, q_stride, keys + k * stride, stride, count - k, dim, prefetch, s + k);
  }
}

// o[n] += sum_{j < count} p[n][j] * values[j] for R registers of N rows. The sum of a block is
// formed by itself and then added: a long sum made of short ones keeps its digits.
template <class V, int N, int R, class T, class Load>
ALIBI_INLINE void add_registers(const float* p, const T* values, int64_t stride, int count,
                                const Prefetch& prefetch, const Load& load, float* o,
                                int64_t o_stride) {
  typename V::Reg acc[N][R];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[n][r] = V::zero();
  }
  for (int j = 0; j < count; ++j, values += stride) {
    prefetch(values);
    typename V::Reg x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = load(values + r * V::kWidth);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const typename V::Reg weight = V::set1(p[n * kBlockKeys + j]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[n][r] = V::fma(weight, x[r], acc[n][r]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* out = o + n * o_stride + r * V::kWidth;
      V::store(out, V::add(V::load(out), acc[n][r]));
    }
  }
}

// The same for the whole head dim: R registers at a time, then half as many, and so on. Rows of o
// have o_stride floats, of which dim rounded up to kWidth are written.
template <class V, int N, int R, class T>
void add_values(const float* p, const T* values, int64_t stride, int count, int dim,
                const Prefetch& prefetch, float* o, int64_t o_stride) {
  int d = 0;
  for (; d + R * V::kWidth <= dim; d += R * V::kWidth) {
    add_registers<V, N, R>(p, values + d, stride, count, prefetch.once(d), LoadAll<V>(), o + d,
                           o_stride);
  }
  if constexpr (R > 1) {
    if (d < dim) {
      add_values<V, N, R / 2>(p, values + d, stride, count, dim - d, prefetch.once(d), o + d,
                              o_stride);
    }
  } else if (d < dim) {
    const LoadFirst<V> load{dim - d};
    add_registers<V, N, 1>(p, values + d, stride, count, prefetch.once(d), load, o + d, o_stride);
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
