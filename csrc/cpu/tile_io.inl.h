// Tiles between a tensor (any strides, float32 / float16 / bfloat16) and the scratch of a thread:
// operands of the products (operands.inl.h) on the way in, float32 sums on the way out.
#ifndef ALIBI_CPU_TILE_IO_INL_H_
#define ALIBI_CPU_TILE_IO_INL_H_

#include <stdint.h>
#include <string.h>

#include "../alibi_attention.h"
#include "dtype.h"
#include "micro.inl.h"
#include "operands.inl.h"

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

// The same head from row s on.
ALIBI_INLINE HeadView from_row(HeadView head, int64_t s) {
  const int64_t size = head.dtype == ALIBI_FLOAT32 ? 4 : 2;
  head.data = static_cast<char*>(head.data) + s * head.stride * size;
  return head;
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

// The same where the rows become operands: Operands<V> that are not float32 exist for one type.
template <class V, class F>
ALIBI_INLINE void with_operand_row(const HeadView& head, int64_t s, F&& f) {
  if constexpr (kTerms<V> == 1) {
    with_row(head, s, f);
  } else {
    f(static_cast<Element<V>*>(head.data) + s * head.stride);
  }
}

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
ALIBI_INLINE int64_t min_int64(int64_t a, int64_t b) { return a < b ? a : b; }
ALIBI_INLINE int64_t max_int64(int64_t a, int64_t b) { return a > b ? a : b; }
ALIBI_INLINE int min_int(int a, int64_t b) { return b < a ? static_cast<int>(b) : a; }

// Has a row of elements fetched, to be read (kWrite = 0) or written (1). It need not begin at a line.
template <int kWrite, int kLocality, class T>
ALIBI_INLINE void prefetch_row(const T* row, int dim) {
  constexpr int64_t kLine = 64;
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t last = static_cast<int64_t>(sizeof(T)) * dim - 1;
  for (int64_t b = 0; b < last; b += kLine) __builtin_prefetch(bytes + b, kWrite, kLocality);
  __builtin_prefetch(bytes + last, kWrite, kLocality);
}

// Rows that are needed soon, asked for a few at a time while something else is computed. Where each
// row lies in another page no hardware sees them coming; and of many requests at once a CPU may drop
// those that find no place to wait in, requests for the second-level cache first.
class RowFetch {
 public:
  // The first n rows of two heads that will be read and of one that will be written, in so many steps.
  // A head without data is left out.
  void begin(const HeadView& a, const HeadView& b, const HeadView& written, int64_t n, int dim,
             int64_t steps) {
    a_ = a, b_ = b, written_ = written, next_ = 0, end_ = n, dim_ = dim;
    rows_ = steps > 0 ? (n + steps - 1) / steps : 0;
  }
  // Besides, each of the next steps asks for so many rows of another head, if it has data.
  void follow(const HeadView& beside, int rows) { beside_ = beside, rows_beside_ = rows; }
  void step() {
    if (beside_.data != nullptr) {
      for (int i = 0; i < rows_beside_; ++i) {
        with_row(beside_, i, [&](const auto* row) { prefetch_row<0, 3>(row, dim_); });
      }
      beside_ = from_row(beside_, rows_beside_);
    }
    const int64_t end = min_int64(end_, next_ + rows_);
    for (; next_ < end; ++next_) {
      with_row(a_, next_, [&](const auto* row) { prefetch_row<0, 3>(row, dim_); });
      if (b_.data != nullptr) {
        with_row(b_, next_, [&](const auto* row) { prefetch_row<0, 3>(row, dim_); });
      }
      with_row(written_, next_, [&](const auto* row) { prefetch_row<1, 3>(row, dim_); });
    }
  }

 private:
  HeadView a_{}, b_{}, written_{}, beside_{};
  int64_t next_ = 0, end_ = 0, rows_ = 0;  // rows_: in a step
  int rows_beside_ = 0, dim_ = 0;
};

// How many rows ahead copies and stores ask for rows that lie apart and that nobody has asked for.
// The place need not exist: a prefetch never faults.
constexpr int kRowsAhead = 8;

// Rows [s, s + n) of a head, either in place or in scratch: one row of elements each (keys), or one
// row of lanes for kTerms of them (values).
template <class T>
struct Rows {
  const T* data;
  int64_t stride;  // between rows of T
};
template <class V>
using KeyRows = Rows<Element<V>>;
template <class V>
using ValueRows = Rows<Lane<V>>;

// Elements of scratch for `rows` copied rows; enough for as many rows of lanes of kTerms rows.
template <class V>
constexpr int64_t row_scratch(int rows, int dim) {
  return static_cast<int64_t>(round_up(rows, V::kKeys)) * round_up(dim, V::kWidth);
}

// Rows of dim rounded up to kWidth and, behind the last one, rows up to a multiple of kKeys are
// padded with zeros. U: float, or elements as they are. ahead: rows that are asked for meanwhile.
template <class V, class T, class U>
void copy_rows(const T* src, int64_t stride, int n, int dim, U* dst, int ahead = 0) {
  const int padded = round_up(dim, V::kWidth);
  for (int j = 0; j < n; ++j, src += stride, dst += padded) {
    if (ahead > 0 && stride != dim) prefetch_row<0, 3>(src + ahead * stride, dim);
    int d = 0;
    for (; d + V::kWidth <= dim; d += V::kWidth) Operands<V>::copy(src + d, V::kWidth, dst + d);
    if (d < dim) Operands<V>::copy(src + d, dim - d, dst + d);
  }
  memset(dst, 0, sizeof(U) * (round_up(n, V::kKeys) - n) * padded);
}

// dst[j / kTerms][d] = lanes of the rows j, j + 1, ... < n; the missing rows of the last lane are 0.
template <class V>
void pair_rows(const Element<V>* src, int64_t stride, int n, int dim, Lane<V>* dst) {
  const int padded = round_up(dim, V::kWidth);
  for (int j = 0; j < n; j += kTerms<V>, src += kTerms<V> * stride, dst += padded) {
    const Element<V>* second = j + 1 < n ? src + stride : nullptr;
    for (int d = 0; d < dim; d += V::kWidth) {
      Operands<V>::pair(src + d, second == nullptr ? nullptr : second + d,
                        min_int(V::kWidth, dim - d), dst + d);
    }
  }
}

// Keys can be read up to a multiple of kKeys rows and to whole lanes: elements whose sizes already
// are such multiples are used in place; anything else (another type, an odd head_dim, the last keys
// of a span) is copied once, padded with zeros.
template <class V>
KeyRows<V> load_keys(const HeadView& head, int64_t s, int n, int dim, Element<V>* scratch) {
  if (head.dtype == Operands<V>::kDtype && n % V::kKeys == 0 && dim % kTerms<V> == 0) {
    return {static_cast<const Element<V>*>(head.data) + s * head.stride, head.stride};
  }
  with_operand_row<V>(head, s,
                      [&](const auto* src) { copy_rows<V>(src, head.stride, n, dim, scratch); });
  return {scratch, round_up(dim, V::kWidth)};
}

// Values can be read up to a multiple of kKeys head dims.
template <class V>
ValueRows<V> load_values(const HeadView& head, int64_t s, int n, int dim, Lane<V>* scratch) {
  if constexpr (kTerms<V> > 1) {
    pair_rows<V>(static_cast<const Element<V>*>(head.data) + s * head.stride, head.stride, n, dim,
                 scratch);
  } else {
    if (head.dtype == ALIBI_FLOAT32 && dim % V::kKeys == 0) {
      return {static_cast<const float*>(head.data) + s * head.stride, head.stride};
    }
    with_row(head, s, [&](const auto* src) { copy_rows<V>(src, head.stride, n, dim, scratch); });
  }
  return {scratch, round_up(dim, V::kWidth)};
}

// Floats (or lanes) of a transposed tile: one row of kRows<V> per head dim.
template <class V>
constexpr int64_t transposed_scratch(int dim) {
  return static_cast<int64_t>(round_up(dim, V::kWidth)) * kRows<V>;
}

// A block of kWidth rows by kWidth lanes, `rows` and `elements` (of a row) of them in use; kFull:
// all of them.
template <class V, bool kFull, class T>
ALIBI_INLINE void load_block(const T* src, int64_t stride, int rows, int elements,
                             typename V::Reg (&block)[V::kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < V::kWidth; ++i) {
    if constexpr (kFull) {
      block[i] = Operands<V>::load_row(src + i * stride);
    } else {
      block[i] = i < rows ? Operands<V>::load_row(src + i * stride, elements) : V::zero();
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
void load_transposed_block(const T* src, int64_t stride, int rows, int elements, float factor,
                           Lane<V>* dst) {
  typename V::Reg block[V::kWidth];
  load_block<V, kFull>(src, stride, rows, elements, block);
  V::transpose(block);
#pragma GCC unroll 16
  for (int d = 0; d < V::kWidth; ++d) {
    const typename V::Reg scaled = Operands<V>::scale_query(block[d], V::set1(factor));
    V::store(reinterpret_cast<float*>(dst + d * kRows<V>), scaled);
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

// dst[d][i] = factor * head[s + i][d] for i < n (float32 operands; others take no factor), 0 for the
// other rows of the tile's row vectors.
template <class V>
void load_transposed(const HeadView& head, int64_t s, int n, int dim, float factor, Lane<V>* dst) {
  constexpr int W = V::kWidth, kRow = W * kTerms<V>;
  with_operand_row<V>(head, s, [&](const auto* src) {
    for (int i = 0; i < n; i += W) {
      for (int d = 0; d < dim; d += kRow) {
        const int rows = min_int(W, n - i), elements = min_int(kRow, dim - d);
        const auto* block = src + i * head.stride + d;
        Lane<V>* out = dst + d / kTerms<V> * kRows<V> + i;
        if (rows == W && elements == kRow) {
          load_transposed_block<V, true>(block, head.stride, W, kRow, factor, out);
        } else {
          load_transposed_block<V, false>(block, head.stride, rows, elements, factor, out);
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
        const float* block = src + int64_t{d} * kRows<V> + i;
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
