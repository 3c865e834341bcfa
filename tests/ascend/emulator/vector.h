// Part of kernel_operator.h: the vector pipe. One repeat handles up to 256 bytes, i.e. 64 floats in
// eight 32-byte blocks.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_VECTOR_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_VECTOR_H_

#include "transfers.h"

namespace AscendC {

struct UnaryRepeatParams {
  UnaryRepeatParams() = default;
  UnaryRepeatParams(uint16_t db, uint16_t sb, uint8_t dr, uint8_t sr)
      : dstBlkStride(db), srcBlkStride(sb), dstRepStride(dr), srcRepStride(sr) {}
  uint16_t dstBlkStride = 1, srcBlkStride = 1;
  uint8_t dstRepStride = 8, srcRepStride = 8;
};
struct BinaryRepeatParams {
  BinaryRepeatParams() = default;
  BinaryRepeatParams(uint8_t db, uint8_t s0b, uint8_t s1b, uint8_t dr, uint8_t s0r, uint8_t s1r)
      : dstBlkStride(db),
        src0BlkStride(s0b),
        src1BlkStride(s1b),
        dstRepStride(dr),
        src0RepStride(s0r),
        src1RepStride(s1r) {}
  uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8,
          src0RepStride = 8, src1RepStride = 8;
};
struct BrcbRepeatParams {
  BrcbRepeatParams(uint16_t blk, uint16_t rep) : dstBlkStride(blk), dstRepStride(rep) {}
  uint16_t dstBlkStride, dstRepStride;
};

// A strided operand of float: repeat r, block b starts at byte 32 * (r * repeat + b * block).
struct Strided {
  LocalTensor<float> tensor;
  uint32_t block, repeat;
  float* at(uint32_t r, uint32_t lane) const {
    return tensor.data() + 8 * (r * repeat + lane / 8 * block) + lane % 8;
  }
  void add_spans(const char* name, std::vector<Span>* spans, uint32_t mask, uint32_t repeats,
                 bool write) const {
    if (write && repeats > 1 && repeat == 0) emu::fail("%s: repeats overwrite each other", name);
    for (uint32_t r = 0; r < repeats; ++r) {
      for (uint32_t b = 0; b * 8 < mask; ++b) {
        const int64_t from = 32 * (int64_t{r} * repeat + int64_t{b} * block);
        spans->push_back(tensor.span(name, from, from + 32, write));
      }
    }
  }
};

inline void check_repeat(const char* name, uint64_t mask, int64_t repeats) {
  check_range(name, "mask", static_cast<int64_t>(mask), 1, 64);
  check_range(name, "repeatTime", repeats, 1, 255);
}

template <typename F>
void strided_op(const char* name, const Strided& dst, const std::vector<Strided>& sources,
                uint64_t mask, int64_t repeats, F f) {
  check_repeat(name, mask, repeats);
  std::vector<Span> spans;
  for (const Strided& s : sources) {
    s.tensor.check(name, emu::kUb, 32);
    s.add_spans(name, &spans, mask, repeats, false);
  }
  dst.tensor.check(name, emu::kUb, 32);
  dst.add_spans(name, &spans, mask, repeats, true);
  issue(emu::kV, name, std::move(spans), [=] {
    for (uint32_t r = 0; r < repeats; ++r) {
      for (uint32_t i = 0; i < mask; ++i) *dst.at(r, i) = f(sources, r, i);
    }
    machine().counts.vector_elements += mask * repeats;
  });
}

template <typename F>
void count_op(const char* name, const LocalTensor<float>& dst,
              const std::vector<LocalTensor<float>>& sources, int64_t count, F f) {
  check_range(name, "count", count, 1, 49152);
  std::vector<Span> spans;
  for (const auto& s : sources) {
    s.check(name, emu::kUb, 32);
    spans.push_back(s.span(name, 0, count * 4, false));
  }
  dst.check(name, emu::kUb, 32);
  spans.push_back(dst.span(name, 0, count * 4, true));
  issue(emu::kV, name, std::move(spans), [=] {
    for (int64_t i = 0; i < count; ++i) dst.data()[i] = f(sources, i);
    machine().counts.vector_elements += count;
  });
}

#define EMU_BINARY(Name, expression)                                                             \
  inline void Name(const LocalTensor<float>& dst, const LocalTensor<float>& s0,                  \
                   const LocalTensor<float>& s1, int32_t count) {                                \
    count_op(#Name, dst, {s0, s1}, count, [](const auto& s, int64_t i) {                         \
      const float x = s[0].data()[i], y = s[1].data()[i];                                        \
      return expression;                                                                         \
    });                                                                                          \
  }                                                                                              \
  inline void Name(const LocalTensor<float>& dst, const LocalTensor<float>& s0,                  \
                   const LocalTensor<float>& s1, uint64_t mask, uint8_t repeats,                 \
                   const BinaryRepeatParams& p) {                                                \
    strided_op(#Name, {dst, p.dstBlkStride, p.dstRepStride},                                     \
               {{s0, p.src0BlkStride, p.src0RepStride}, {s1, p.src1BlkStride, p.src1RepStride}}, \
               mask, repeats, [](const std::vector<Strided>& s, uint32_t r, uint32_t i) {        \
                 const float x = *s[0].at(r, i), y = *s[1].at(r, i);                             \
                 return expression;                                                              \
               });                                                                               \
  }
EMU_BINARY(Add, x + y)
EMU_BINARY(Sub, x - y)
EMU_BINARY(Mul, x* y)
EMU_BINARY(Div, x / y)
EMU_BINARY(Max, x > y || x != x ? x : y)
EMU_BINARY(Min, x < y || x != x ? x : y)
#undef EMU_BINARY

#define EMU_SCALAR(Name, expression)                                                            \
  inline void Name(const LocalTensor<float>& dst, const LocalTensor<float>& s0, const float& y, \
                   int32_t count) {                                                             \
    count_op(#Name, dst, {s0}, count, [y](const auto& s, int64_t i) {                           \
      const float x = s[0].data()[i];                                                           \
      return expression;                                                                        \
    });                                                                                         \
  }                                                                                             \
  inline void Name(const LocalTensor<float>& dst, const LocalTensor<float>& s0, const float& y, \
                   uint64_t mask, uint8_t repeats, const UnaryRepeatParams& p) {                \
    strided_op(#Name, {dst, p.dstBlkStride, p.dstRepStride},                                    \
               {{s0, p.srcBlkStride, p.srcRepStride}}, mask, repeats,                           \
               [y](const std::vector<Strided>& s, uint32_t r, uint32_t i) {                     \
                 const float x = *s[0].at(r, i);                                                \
                 return expression;                                                             \
               });                                                                              \
  }
EMU_SCALAR(Adds, x + y)
EMU_SCALAR(Muls, x* y)
EMU_SCALAR(Maxs, x > y || x != x ? x : y)
EMU_SCALAR(Mins, x < y || x != x ? x : y)
#undef EMU_SCALAR

#define EMU_UNARY(Name, expression)                                                              \
  inline void Name(const LocalTensor<float>& dst, const LocalTensor<float>& s0, int32_t count) { \
    count_op(#Name, dst, {s0}, count, [](const auto& s, int64_t i) {                             \
      const float x = s[0].data()[i];                                                            \
      return expression;                                                                         \
    });                                                                                          \
  }
EMU_UNARY(Exp, std::exp(x))
EMU_UNARY(Ln, std::log(x))
EMU_UNARY(Abs, std::fabs(x))
#undef EMU_UNARY

inline void Duplicate(const LocalTensor<float>& dst, const float& value, const int32_t& count) {
  count_op("Duplicate", dst, {}, count, [value](const auto&, int64_t) { return value; });
}
inline void Duplicate(const LocalTensor<float>& dst, const float& value, uint64_t mask[],
                      uint8_t repeats, uint16_t block, uint8_t repeat) {
  const uint64_t bits = mask[0];
  if (mask[1]) emu::fail("Duplicate: mask bits past the 64th float");
  if (!bits) emu::fail("Duplicate: empty mask");
  check_repeat("Duplicate", 64, repeats);
  dst.check("Duplicate", emu::kUb, 32);
  const Strided to{dst, block, repeat};
  std::vector<Span> spans;
  for (uint32_t r = 0; r < repeats; ++r) {
    for (uint32_t b = 0; b < 8; ++b) {
      const int64_t from = 32 * (int64_t{r} * repeat + int64_t{b} * block);
      if (bits >> (8 * b) & 0xff) spans.push_back(dst.span("Duplicate", from, from + 32, true));
    }
  }
  issue(emu::kV, "Duplicate", std::move(spans), [=] {
    for (uint32_t r = 0; r < repeats; ++r) {
      for (uint32_t i = 0; i < 64; ++i) {
        if (bits >> i & 1) *to.at(r, i) = value;
      }
    }
    machine().counts.vector_elements += 64 * repeats;
  });
}

inline void CreateVecIndex(LocalTensor<int32_t> dst, const int32_t& first, uint32_t count) {
  dst.check("CreateVecIndex", emu::kUb, 32);
  issue(emu::kV, "CreateVecIndex", {dst.span("CreateVecIndex", 0, count * 4, true)}, [=] {
    for (uint32_t i = 0; i < count; ++i) dst.data()[i] = first + static_cast<int32_t>(i);
  });
}

// To T, to nearest even; int32 -> float is exact below 2^24.
template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode,
          uint32_t count) {
  const bool narrowing = sizeof(T) < sizeof(U) || std::is_same<U, int32_t>::value;
  if (mode != (narrowing ? RoundMode::CAST_RINT : RoundMode::CAST_NONE))
    emu::fail("Cast: unexpected rounding mode");
  dst.check("Cast", emu::kUb, 32);
  src.check("Cast", emu::kUb, 32);
  issue(
      emu::kV, "Cast",
      {src.span("Cast", 0, count * sizeof(U), false), dst.span("Cast", 0, count * sizeof(T), true)},
      [=] {
        for (uint32_t i = 0; i < count; ++i) dst.data()[i] = T(static_cast<float>(src.data()[i]));
        machine().counts.vector_elements += count;
      });
}

// Each of 8 * repeats floats spread over a 32-byte block.
inline void Brcb(const LocalTensor<float>& dst, const LocalTensor<float>& src, uint8_t repeats,
                 const BrcbRepeatParams& p) {
  check_range("Brcb", "repeatTime", repeats, 1, 255);
  check_range("Brcb", "dstBlkStride", p.dstBlkStride, 1, 65535);
  dst.check("Brcb", emu::kUb, 32);
  src.check("Brcb", emu::kUb, 32);
  std::vector<Span> spans = {src.span("Brcb", 0, repeats * 32, false)};
  for (uint32_t i = 0; i < repeats * 8u; ++i) {
    const int64_t from = 32 * (int64_t{i / 8} * p.dstRepStride + int64_t{i % 8} * p.dstBlkStride);
    spans.push_back(dst.span("Brcb", from, from + 32, true));
  }
  const int64_t begin = dst.byte(),
                end = begin + 32 * (int64_t{repeats - 1} * p.dstRepStride + 7 * p.dstBlkStride + 1);
  if (src.byte() < end && src.byte() + repeats * 32 > begin)
    emu::fail("Brcb: source and destination overlap");
  issue(emu::kV, "Brcb", std::move(spans), [=] {
    for (uint32_t i = 0; i < repeats * 8u; ++i) {
      for (uint32_t x = 0; x < 8; ++x)
        dst.data()[8 * (i / 8 * p.dstRepStride + i % 8 * p.dstBlkStride) + x] = src.data()[i];
    }
    machine().counts.vector_elements += 64 * repeats;
  });
}

template <typename F>
void whole_reduce(const char* name, const LocalTensor<float>& dst, const LocalTensor<float>& src,
                  int32_t mask, int32_t repeats, int32_t stride, int32_t block, int32_t repeat,
                  F f) {
  check_repeat(name, static_cast<uint64_t>(mask), repeats);
  src.check(name, emu::kUb, 32);
  dst.check(name, emu::kUb, 4);
  const Strided from{src, static_cast<uint32_t>(block), static_cast<uint32_t>(repeat)};
  std::vector<Span> spans;
  from.add_spans(name, &spans, static_cast<uint32_t>(mask), static_cast<uint32_t>(repeats), false);
  spans.push_back(dst.span(name, 0, 4 * (int64_t{repeats - 1} * stride + 1), true));
  issue(emu::kV, name, std::move(spans), [=] {
    for (int32_t r = 0; r < repeats; ++r) {
      float value = *from.at(r, 0);
      for (int32_t i = 1; i < mask; ++i) value = f(value, *from.at(r, i));
      dst.data()[r * stride] = value;
    }
    machine().counts.vector_elements += static_cast<uint64_t>(mask) * repeats;
  });
}
template <typename T>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask,
                    int32_t repeats, int32_t stride, int32_t block, int32_t repeat,
                    ReduceOrder order) {
  if (order != ReduceOrder::ORDER_ONLY_VALUE) emu::fail("WholeReduceMax: only values are modelled");
  whole_reduce("WholeReduceMax", dst, src, mask, repeats, stride, block, repeat,
               [](float x, float y) { return x > y || x != x ? x : y; });
}
template <typename T>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask,
                    int32_t repeats, int32_t stride, int32_t block, int32_t repeat) {
  whole_reduce("WholeReduceSum", dst, src, mask, repeats, stride, block, repeat,
               [](float x, float y) { return x + y; });
}

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_VECTOR_H_
