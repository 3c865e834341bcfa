// Tiles between a tensor (any strides, float32 / float16 / bfloat16) and the float32 scratch of a
// thread.
#ifndef ALIBI_CPU_TILE_IO_INL_H_
#define ALIBI_CPU_TILE_IO_INL_H_

#include <stdint.h>

#include "../alibi_attention.h"
#include "dtype.h"
#include "micro.inl.h"

namespace alibi::cpu {
namespace {

// One (batch, head) of an AlibiTensor: row s starts at data + s * stride elements of `dtype`.
struct HeadView {
  void* data;
  int64_t stride;
  int32_t dtype;
};

ALIBI_INLINE HeadView head_view(const AlibiTensor& t, int32_t dtype, int64_t b, int64_t h) {
  const int64_t size = dtype == ALIBI_FLOAT32 ? 4 : 2;
  const int64_t offset = (b * t.stride_b + h * t.stride_h) * size;
  return {static_cast<char*>(t.data) + offset, t.stride_s, dtype};
}

// Calls f(pointer to row s with its element type).
template <class F>
ALIBI_INLINE void with_row(const HeadView& head, int64_t s, F&& f) {
  switch (head.dtype) {
    case ALIBI_FLOAT32:
      return f(static_cast<float*>(head.data) + s * head.stride);
    case ALIBI_FLOAT16:
      return f(static_cast<Half*>(head.data) + s * head.stride);
    default:
      return f(static_cast<BFloat16*>(head.data) + s * head.stride);
  }
}

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
ALIBI_INLINE int64_t min_int64(int64_t a, int64_t b) { return a < b ? a : b; }
ALIBI_INLINE int64_t max_int64(int64_t a, int64_t b) { return a > b ? a : b; }
ALIBI_INLINE int min_int(int a, int64_t b) { return b < a ? static_cast<int>(b) : a; }

// Rows [s, s + n) of a head as float32, either in place or in scratch.
struct FloatRows {
  const float* data;
  int64_t stride;  // floats between rows
};

// Scratch that load_rows needs for `rows` rows.
template <class V>
constexpr int64_t row_scratch(int rows, int dim) {
  return static_cast<int64_t>(round_up(rows, V::kKeys)) * round_up(dim, V::kWidth);
}

template <class V, class T>
void copy_rows(const T* src, int64_t stride, int n, int dim, float* dst) {
  const int padded = round_up(dim, V::kWidth);
  for (int j = 0; j < n; ++j, src += stride, dst += padded) {
    int d = 0;
    for (; d + V::kWidth <= dim; d += V::kWidth) V::store(dst + d, V::load(src + d));
    if (d < dim) V::store(dst + d, V::load_first(src + d, dim - d));
  }
  const int64_t rest = static_cast<int64_t>(round_up(n, V::kKeys) - n) * padded;
  for (int64_t i = 0; i < rest; ++i) dst[i] = 0.0f;
}

// The result can be read up to a multiple of kKeys in both directions: a float32 head whose sizes
// already are such multiples is used in place; anything else (16-bit types, odd head_dim, the last
// keys of a span) is copied once, padded with zeros.
template <class V>
FloatRows load_rows(const HeadView& head, int64_t s, int n, int dim, float* scratch) {
  if (head.dtype == ALIBI_FLOAT32 && n % V::kKeys == 0 && dim % V::kKeys == 0) {
    return {static_cast<const float*>(head.data) + s * head.stride, head.stride};
  }
  with_row(head, s, [&](const auto* src) { copy_rows<V>(src, head.stride, n, dim, scratch); });
  return {scratch, round_up(dim, V::kWidth)};
}

// Floats of a transposed tile: one row of kRows<V> floats per head dim.
template <class V>
constexpr int64_t transposed_scratch(int dim) {
  return static_cast<int64_t>(round_up(dim, V::kWidth)) * kRows<V>;
}

// A block of kWidth rows by kWidth elements, `rows` and `columns` of them in use; kFull: all of
// them.
template <class V, bool kFull, class T>
ALIBI_INLINE void load_block(const T* src, int64_t stride, int rows, int columns,
                             typename V::Reg (&block)[V::kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < V::kWidth; ++i) {
    if constexpr (kFull) {
      block[i] = V::load(src + i * stride);
    } else {
      block[i] = i < rows ? V::load_first(src + i * stride, columns) : V::zero();
    }
  }
}
template <class V, bool kFull, class T>
ALIBI_INLINE void store_block(T* dst, int64_t stride, int rows, int columns,
                              const typename V::Reg (&block)[V::kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < V::kWidth; ++i) {
    if constexpr (kFull) {
      V::store(dst + i * stride, block[i]);
    } else if (i < rows) {
      V::store_first(dst + i * stride, block[i], columns);
    }
  }
}

template <class V, bool kFull, class T>
void load_transposed_block(const T* src, int64_t stride, int rows, int dims, float factor,
                           float* dst) {
  typename V::Reg block[V::kWidth];
  load_block<V, kFull>(src, stride, rows, dims, block);
  V::transpose(block);
#pragma GCC unroll 16
  for (int d = 0; d < V::kWidth; ++d) {
    V::store(dst + d * kRows<V>, V::mul(V::set1(factor), block[d]));
  }
}

template <class V, bool kFull, class T>
void store_transposed_block(const float* src, typename V::Reg factor, T* dst, int64_t stride,
                            int rows, int dims) {
  typename V::Reg block[V::kWidth];
#pragma GCC unroll 16
  for (int d = 0; d < V::kWidth; ++d) block[d] = V::mul(factor, V::load(src + d * kRows<V>));
  V::transpose(block);
  store_block<V, kFull>(dst, stride, rows, dims, block);
}

// dst[d][i] = factor * head[s + i][d] for i < n, 0 for the other rows of the tile's row vectors.
template <class V>
void load_transposed(const HeadView& head, int64_t s, int n, int dim, float factor, float* dst) {
  constexpr int W = V::kWidth;
  with_row(head, s, [&](const auto* src) {
    for (int i = 0; i < n; i += W) {
      for (int d = 0; d < dim; d += W) {
        const int rows = min_int(W, n - i), dims = min_int(W, dim - d);
        const auto* block = src + i * head.stride + d;
        float* out = dst + d * kRows<V> + i;
        if (rows == W && dims == W) {
          load_transposed_block<V, true>(block, head.stride, W, W, factor, out);
        } else {
          load_transposed_block<V, false>(block, head.stride, rows, dims, factor, out);
        }
      }
    }
  });
}

// head[s + i][d] = factor[i] * src[d][i] for i < n, d < dim. src rows up to dim rounded up to
// kWidth are read.
template <class V>
void store_transposed(const float* src, const float* factor, int n, int dim, const HeadView& head,
                      int64_t s) {
  constexpr int W = V::kWidth;
  with_row(head, s, [&](auto* dst) {
    for (int i = 0; i < n; i += W) {
      const typename V::Reg scale = V::load(factor + i);
      for (int d = 0; d < dim; d += W) {
        const int rows = min_int(W, n - i), dims = min_int(W, dim - d);
        const float* block = src + d * kRows<V> + i;
        auto* out = dst + i * head.stride + d;
        if (rows == W && dims == W) {
          store_transposed_block<V, true>(block, scale, out, head.stride, W, W);
        } else {
          store_transposed_block<V, false>(block, scale, out, head.stride, rows, dims);
        }
      }
    }
  });
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_TILE_IO_INL_H_
