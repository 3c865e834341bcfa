// Part of kernel_operator.h: the pipes MTE1, MTE2, MTE3 and FIX.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_TRANSFERS_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_TRANSFERS_H_

#include "sync.h"

namespace AscendC {

inline void check_range(const char* name, const char* field, int64_t value, int64_t low,
                        int64_t high) {
  if (value < low || value > high)
    emu::fail("%s: %s = %lld is not in %lld..%lld", name, field, static_cast<long long>(value),
              static_cast<long long>(low), static_cast<long long>(high));
}

inline void issue(int pipe, const char* name, std::vector<Span> spans, std::function<void()> run) {
  Instruction instruction;
  instruction.name = name;
  instruction.spans = std::move(spans);
  instruction.run = std::move(run);
  machine().issue(pipe, std::move(instruction));
}

struct DataCopyExtParams {
  DataCopyExtParams() = default;
  DataCopyExtParams(uint16_t count, uint32_t length, uint32_t source, uint32_t destination,
                    uint32_t reserved)
      : blockCount(count),
        blockLen(length),
        srcStride(source),
        dstStride(destination),
        rsv(reserved) {}
  uint16_t blockCount = 1;
  uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
};
template <typename T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() = default;
  bool isPad = false;
  uint8_t leftPadding = 0, rightPadding = 0;
  T paddingValue = T();
};

inline void check_pad(const char* name, const DataCopyExtParams& p, uint32_t element) {
  check_range(name, "blockCount", p.blockCount, 1, 4095);
  check_range(name, "blockLen", p.blockLen, 1, 2097151);
  if (p.blockLen % element)
    emu::fail("%s: blockLen %u is no multiple of the element", name, p.blockLen);
}

// Global memory -> UB: rows of blockLen bytes, each padded to 32 bytes with what is unspecified
// here (NaN).
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad) {
  const char* name = "DataCopyPad in";
  check_pad(name, p, sizeof(T));
  if (pad.isPad || pad.leftPadding || pad.rightPadding)
    emu::fail("%s: padding values are not modelled", name);
  dst.check(name, emu::kUb, 32);
  const uint32_t pitch = (p.blockLen + 31) / 32 * 32 + p.dstStride * 32;
  std::vector<Span> spans;
  for (uint32_t i = 0; i < p.blockCount; ++i) {
    spans.push_back(global_span(
        name, reinterpret_cast<uint8_t*>(src.address()) + uint64_t{i} * (p.blockLen + p.srcStride),
        p.blockLen, false));
    spans.push_back(dst.span(name, i * pitch, i * pitch + (p.blockLen + 31) / 32 * 32, true));
  }
  issue(emu::kMte2, name, std::move(spans), [=] {
    auto* to = reinterpret_cast<uint8_t*>(dst.data());
    const auto* from = reinterpret_cast<const uint8_t*>(src.address());
    for (uint32_t i = 0; i < p.blockCount; ++i) {
      std::memset(to + i * pitch, 0xff, (p.blockLen + 31) / 32 * 32);
      std::memcpy(to + i * pitch, from + uint64_t{i} * (p.blockLen + p.srcStride), p.blockLen);
    }
  });
}

// UB -> global memory, the padding of each row dropped.
template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyExtParams& p) {
  const char* name = "DataCopyPad out";
  if (machine().here().atomic_add) emu::fail("%s: atomic stores are not modelled", name);
  check_pad(name, p, sizeof(T));
  src.check(name, emu::kUb, 32);
  const uint32_t pitch = (p.blockLen + 31) / 32 * 32 + p.srcStride * 32;
  std::vector<Span> spans;
  for (uint32_t i = 0; i < p.blockCount; ++i) {
    spans.push_back(src.span(name, i * pitch, i * pitch + p.blockLen, false));
    spans.push_back(global_span(
        name, reinterpret_cast<uint8_t*>(dst.address()) + uint64_t{i} * (p.blockLen + p.dstStride),
        p.blockLen, true));
  }
  issue(emu::kMte3, name, std::move(spans), [=] {
    auto* to = reinterpret_cast<uint8_t*>(dst.address());
    const auto* from = reinterpret_cast<const uint8_t*>(src.data());
    for (uint32_t i = 0; i < p.blockCount; ++i)
      std::memcpy(to + uint64_t{i} * (p.blockLen + p.dstStride), from + i * pitch, p.blockLen);
  });
}

template <typename T>
void check_whole_blocks(const char* name, const T* address, uint32_t count) {
  if (count == 0 || count * sizeof(T) % 32)
    emu::fail("%s: %u elements are no multiple of 32 bytes", name, count);
  (void)address;
}

// Contiguous copies of whole 32-byte blocks.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count) {
  const char* name = "DataCopy in";
  check_whole_blocks(name, src.address(), count);
  dst.check(name, emu::kUb, 32);
  const uint32_t bytes = count * sizeof(T);
  issue(emu::kMte2, name,
        {global_span(name, src.address(), bytes, false), dst.span(name, 0, bytes, true)},
        [=] { std::memcpy(dst.data(), src.address(), bytes); });
}
template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count) {
  const char* name = "DataCopy out";
  if (machine().here().atomic_add) emu::fail("%s: atomic stores are not modelled", name);
  check_whole_blocks(name, dst.address(), count);
  src.check(name, emu::kUb, 32);
  const uint32_t bytes = count * sizeof(T);
  issue(emu::kMte3, name,
        {src.span(name, 0, bytes, false), global_span(name, dst.address(), bytes, true)},
        [=] { std::memcpy(dst.address(), src.data(), bytes); });
}

struct Nd2NzParams {
  uint16_t ndNum = 0, nValue = 0, dValue = 0, srcNdMatrixStride = 0, srcDValue = 0,
           dstNzC0Stride = 0, dstNzNStride = 0, dstNzMatrixStride = 0;
};

// Global memory, row-major [nValue, dValue] -> L1, fractal "Nz": columns in groups of 16, each
// group [rows, 16]. The last group is filled up with zeros; rows past nValue keep what was there.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& p) {
  const char* name = "DataCopy ND2NZ";
  static_assert(sizeof(T) == 2, "16-bit elements");
  check_range(name, "ndNum", p.ndNum, 1, 1);
  check_range(name, "nValue", p.nValue, 1, 16384);
  check_range(name, "dValue", p.dValue, 1, 65535);
  check_range(name, "srcDValue", p.srcDValue, p.nValue > 1 ? p.dValue : 1, 65535);
  check_range(name, "dstNzC0Stride", p.dstNzC0Stride, p.nValue, 16384);
  check_range(name, "dstNzNStride", p.dstNzNStride, 1, 1);
  dst.check(name, emu::kL1, 32);
  std::vector<Span> spans;
  for (uint32_t r = 0; r < p.nValue; ++r)
    spans.push_back(
        global_span(name, src.address() + uint64_t{r} * p.srcDValue, p.dValue * 2, false));
  const uint32_t groups = (p.dValue + 15) / 16;
  for (uint32_t g = 0; g < groups; ++g)
    spans.push_back(
        dst.span(name, g * p.dstNzC0Stride * 32, (g * p.dstNzC0Stride + p.nValue) * 32, true));
  issue(emu::kMte2, name, std::move(spans), [=] {
    for (uint32_t r = 0; r < p.nValue; ++r) {
      for (uint32_t c = 0; c < groups * 16; ++c) {
        T* to = dst.data() + (c / 16 * p.dstNzC0Stride + r) * 16 + c % 16;
        *to = c < p.dValue ? src.address()[uint64_t{r} * p.srcDValue + c] : T(0.0f);
      }
    }
  });
}

template <typename T>
struct InitConstValueParams {
  uint16_t repeatTimes = 0, blockNum = 0, dstGap = 0;
  T initValue = 0;
};

// One value in blockNum 32-byte blocks of L1, repeatTimes times, dstGap blocks apart.
template <typename T>
void InitConstValue(const LocalTensor<T>& dst, const InitConstValueParams<T>& p) {
  const char* name = "InitConstValue";
  check_range(name, "repeatTimes", p.repeatTimes, 1, 32767);
  check_range(name, "blockNum", p.blockNum, 1, 32767);
  check_range(name, "dstGap", p.dstGap, 0, 32767);
  dst.check(name, emu::kL1, 32);
  const uint32_t pitch = p.blockNum + p.dstGap, count = p.blockNum * 32 / sizeof(T);
  std::vector<Span> spans;
  for (uint32_t i = 0; i < p.repeatTimes; ++i)
    spans.push_back(dst.span(name, i * pitch * 32, (i * pitch + p.blockNum) * 32, true));
  issue(emu::kMte2, name, std::move(spans), [=] {
    for (uint32_t i = 0; i < p.repeatTimes; ++i)
      std::fill_n(dst.data() + i * pitch * 32 / sizeof(T), count, p.initValue);
  });
}

struct LoadData2DParams {
  LoadData2DParams() = default;
  LoadData2DParams(uint16_t start, uint8_t repeat, uint16_t source, uint8_t s, uint16_t gap,
                   bool transpose, uint8_t mode)
      : startIndex(start),
        dstGap(gap),
        srcStride(source),
        ifTranspose(transpose),
        repeatTimes(repeat),
        sid(s),
        addrMode(mode) {}
  uint16_t startIndex = 0, dstGap = 0, srcStride = 0;
  bool ifTranspose = false;
  uint8_t repeatTimes = 0, sid = 0, addrMode = 0;
};

// L1 -> L0A or L0B: repeatTimes fractals of 16x16 elements, each transposed on the way if asked
// for.
template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& p) {
  const char* name = "LoadData";
  static_assert(sizeof(T) == 2, "16-bit elements");
  check_range(name, "repeatTimes", p.repeatTimes, 1, 255);
  const emu::Local to = dst.memory() == &machine().here().local[emu::kL0a] ? emu::kL0a : emu::kL0b;
  dst.check(name, to, 512);
  src.check(name, emu::kL1, 32);
  std::vector<Span> spans;
  for (uint32_t i = 0; i < p.repeatTimes; ++i) {
    const int64_t from = (p.startIndex + int64_t{i} * p.srcStride) * 512,
                  at = int64_t{i} * (1 + p.dstGap) * 512;
    spans.push_back(src.span(name, from, from + 512, false));
    spans.push_back(dst.span(name, at, at + 512, true));
  }
  issue(emu::kMte1, name, std::move(spans), [=] {
    for (uint32_t i = 0; i < p.repeatTimes; ++i) {
      const T* from = src.data() + (p.startIndex + i * p.srcStride) * 256;
      T* at = dst.data() + i * (1 + p.dstGap) * 256;
      for (int r = 0; r < 16; ++r) {
        for (int c = 0; c < 16; ++c)
          at[r * 16 + c] = p.ifTranspose ? from[c * 16 + r] : from[r * 16 + c];
      }
    }
  });
}

struct FixpipeParamsV220 {
  uint16_t nSize = 0, mSize = 0, srcStride = 0;
  uint32_t dstStride = 0;
  bool reluEn = false;
  QuantMode_t quantPre = QuantMode_t::NoQuant;
  int64_t deqScalar = 0;
  uint16_t ndNum = 1, srcNdStride = 0, dstNdStride = 0;
  uint8_t unitFlag = 0;
};

// Stores that follow add to global memory instead of overwriting it. Only float sums through
// Fixpipe are modelled.
template <typename T>
void SetAtomicAdd() {
  static_assert(std::is_same<T, float>::value, "float sums");
  machine().here().atomic_add = true;
}
inline void SetAtomicNone() { machine().here().atomic_add = false; }

// L0C, fractal Nz in columns of 16 -> global memory, row-major with dstStride elements per row,
// optionally rounded to T.
template <typename T, typename U, const FixpipeConfig& config>
void Fixpipe(const GlobalTensor<T>& dst, const LocalTensor<U>& src, const FixpipeParamsV220& p) {
  const char* name = "Fixpipe";
  static_assert(sizeof(U) == 4, "float accumulators");
  check_range(name, "nSize", p.nSize, 1, 4095);
  if (p.nSize % 16) emu::fail("Fixpipe: nSize %d is no multiple of 16", p.nSize);
  check_range(name, "mSize", p.mSize, 1, 8192);
  check_range(name, "ndNum", p.ndNum, 1, 1);
  check_range(name, "dstStride", p.dstStride, p.nSize, 65535);
  if (p.srcStride % 16 || p.srcStride < p.mSize)
    emu::fail("Fixpipe: srcStride %d for %d rows", p.srcStride, p.mSize);
  const QuantMode_t expected = std::is_same<T, half>::value         ? QuantMode_t::F322F16
                               : std::is_same<T, bfloat16_t>::value ? QuantMode_t::F322BF16
                                                                    : QuantMode_t::NoQuant;
  if (p.quantPre != expected) emu::fail("Fixpipe: quantPre does not match the output type");
  src.check(name, emu::kL0c, 64);
  std::vector<Span> spans;
  for (uint32_t g = 0; g < p.nSize / 16u; ++g)
    spans.push_back(src.span(name, g * p.srcStride * 64, (g * p.srcStride + p.mSize) * 64, false));
  for (uint32_t r = 0; r < p.mSize; ++r)
    spans.push_back(
        global_span(name, dst.address() + uint64_t{r} * p.dstStride, p.nSize * sizeof(T), true));
  const bool add = machine().here().atomic_add;
  for (uint32_t r = 0; add && r < p.mSize; ++r)
    spans.push_back(
        global_span(name, dst.address() + uint64_t{r} * p.dstStride, p.nSize * sizeof(T), false));
  issue(emu::kFix, name, std::move(spans), [=] {
    for (uint32_t r = 0; r < p.mSize; ++r) {
      for (uint32_t c = 0; c < p.nSize; ++c) {
        T& to = dst.address()[uint64_t{r} * p.dstStride + c];
        const T value = T(src.data()[(c / 16 * p.srcStride + r) * 16 + c % 16]);
        to = add ? T(to + value) : value;
      }
    }
  });
}

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_TRANSFERS_H_
