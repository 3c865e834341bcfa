// Part of kernel_operator.h: tensors and buffers.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_TENSORS_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_TENSORS_H_

#include "types.h"

namespace AscendC {

template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* address) { address_ = address; }
  void SetGlobalBuffer(T* address, uint64_t) { address_ = address; }
  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor result;
    result.address_ = address_ + offset;
    return result;
  }
  // A scalar load goes through the data cache, which nothing keeps coherent: only inputs may be
  // read this way.
  T GetValue(uint64_t index) const {
    const emu::Region& region = machine().region_of(address_ + index, sizeof(T), "GetValue");
    if (region.use != emu::Use::kInput)
      emu::fail("GetValue of %s, which is no input", region.name.c_str());
    return address_[index];
  }
  T* address() const { return address_; }

 private:
  T* address_ = nullptr;
};

// Elements of type T at a byte offset of a local memory of the calling core.
template <typename T>
class LocalTensor {
 public:
  LocalTensor() = default;
  LocalTensor(emu::Memory* memory, uint32_t byte, uint32_t end)
      : memory_(memory), byte_(byte), end_(end) {}
  LocalTensor operator[](uint32_t element) const {
    return LocalTensor(memory_, byte_ + element * static_cast<uint32_t>(sizeof(T)), end_);
  }
  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    return LocalTensor<U>(memory_, byte_, end_);
  }
  emu::Memory* memory() const { return memory_; }
  uint32_t byte() const { return byte_; }
  // Element `index`, without a check: footprints are checked when an instruction is issued.
  T* data() const { return reinterpret_cast<T*>(memory_->bytes.data() + byte_); }
  // The bytes [from, to) after the start as part of a footprint; they must lie inside the buffer.
  Span span(const char* name, int64_t from, int64_t to, bool write) const {
    if (!memory_) emu::fail("%s: operand without a buffer", name);
    if (from < 0 || byte_ + to > end_)
      emu::fail("%s: bytes %lld..%lld of a buffer of %s that ends at %u", name,
                static_cast<long long>(byte_ + from), static_cast<long long>(byte_ + to),
                memory_->name.c_str(), end_);
    return Span{memory_, nullptr, static_cast<uint64_t>(byte_ + from),
                static_cast<uint64_t>(byte_ + to), write};
  }
  void check(const char* name, emu::Local where, uint32_t align) const {
    if (!memory_ || memory_ != &machine().here().local[where])
      emu::fail("%s: operand lies in %s", name, memory_ ? memory_->name.c_str() : "no buffer");
    if (byte_ % align)
      emu::fail("%s: address %u in %s is not a multiple of %u", name, byte_, memory_->name.c_str(),
                align);
  }

 private:
  emu::Memory* memory_ = nullptr;
  uint32_t byte_ = 0;
  uint32_t end_ = 0;
};

template <typename T>
Span global_span(const char* name, T* address, uint64_t bytes, bool write) {
  emu::Region& region = machine().region_of(address, bytes, name);
  const uint64_t begin = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(address) - region.base);
  return Span{nullptr, &region, begin, begin + bytes, write};
}

constexpr emu::Local local_of(TPosition position) {
  return position == TPosition::A1 || position == TPosition::B1 ? emu::kL1
         : position == TPosition::A2                            ? emu::kL0a
         : position == TPosition::B2                            ? emu::kL0b
         : position == TPosition::CO1                           ? emu::kL0c
                                                                : emu::kUb;
}

template <TPosition position>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() const {
    return LocalTensor<T>(&machine().here().local[local_of(position)], begin_, end_);
  }

 private:
  friend class TPipe;
  uint32_t begin_ = 0, end_ = 0;
};

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_TENSORS_H_
