// The functions of csrc/cuda/sm80/device.cuh, and the CUDA built-ins that the kernels call, on the
// model.
#ifndef SIMT_DEVICE_H_
#define SIMT_DEVICE_H_

#include "machine.h"

namespace simt {

template <class T>
struct Exchange {
  T value;
  T result;
  int source;  // lane
};

// Lanes outside the mask yield garbage on a GPU, all-ones here: NaN.
template <class T>
T exchange(uint32_t mask, T value, int source, const char* operation) {
  Exchange<T> mine{value, value, source};
  collective(mask, operation, &mine, [mask](void** slots) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      auto* lane = static_cast<Exchange<T>*>(slots[__builtin_ctz(rest)]);
      if ((mask >> lane->source & 1) != 0) {
        lane->result = static_cast<Exchange<T>*>(slots[lane->source])->value;
      } else {
        memset(static_cast<void*>(&lane->result), 0xff, sizeof(T));
      }
    }
  });
  return mine.result;
}

inline void land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  char* target = machine.shared + copy.target;
  if (copy.bytes > 0) memcpy(target, copy.source, static_cast<size_t>(copy.bytes));
  memset(target + copy.bytes, 0, static_cast<size_t>(16 - copy.bytes));
}

}  // namespace simt

inline void __syncthreads() { simt::block_barrier(true, "__syncthreads"); }
inline int __syncthreads_and(int predicate) {
  return simt::block_barrier(predicate != 0, "__syncthreads_and");
}

inline void __syncwarp() {
  simt::collective(0xffffffffu, "__syncwarp", nullptr, [](void**) {});
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const int lane = simt::machine.lane();
  return simt::exchange(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  return simt::exchange(mask, value, simt::machine.lane() ^ lanes, "__shfl_xor_sync");
}
inline int __all_sync(uint32_t mask, int predicate) {
  simt::Exchange<int> mine{predicate != 0, 0, 0};
  simt::collective(mask, "__all_sync", &mine, [mask](void** slots) {
    int all = 1;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      all &= static_cast<simt::Exchange<int>*>(slots[__builtin_ctz(rest)])->value;
    }
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      static_cast<simt::Exchange<int>*>(slots[__builtin_ctz(rest)])->result = all;
    }
  });
  return mine.result;
}
inline int atomicMax(int* target, int value) {
  const int old = *target;
  *target = std::max(old, value);
  return old;
}

namespace alibi {
namespace cuda {

using half_t = simt::Half;
using bfloat_t = simt::Bfloat;

constexpr unsigned kAllLanes = 0xffffffffu;

inline uint32_t shared_base() { return simt::config.shared_base; }

inline bool on_turing() { return simt::config.capability < 80; }
inline void wrong_gpu() { simt::fail("a kernel made for another GPU was launched"); }
constexpr int kUnrolledSteps = 16;

inline float exp2_fast(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

// The target holds NaN until the copy lands: at once, at some wait, or at the last wait that allows
// it.
inline void copy_async(uint32_t target, const void* source, int bytes) {
  char* at = simt::shared_at(target, 16, 16, "cp.async");
  if (bytes < 0 || bytes > 16) simt::fail("cp.async: bad size");
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0)
    simt::fail("cp.async: global address not aligned to 16 bytes");
  simt::note_write(target, 16, "cp.async", true);
  if (!simt::config.naive) memset(at, 0xff, 16);
  ++simt::stats.async_copies;
  auto& open = simt::machine.current->open_copies;
  open.push_back({target, static_cast<const char*>(source), bytes, false});
  if (simt::config.naive || (simt::config.seed != 0 && simt::machine.random() % 4 == 0))
    simt::land(open.back());
}

inline void copy_commit() {
  simt::Fiber& f = *simt::machine.current;
  f.groups.push_back(std::move(f.open_copies));
  f.open_copies.clear();
}

template <int N>
void copy_wait() {
  auto& groups = simt::machine.current->groups;
  while (groups.size() > static_cast<size_t>(N)) {
    for (simt::Copy& copy : groups.front()) {
      simt::land(copy);
      simt::note_landed(copy.target, 16);
    }
    groups.erase(groups.begin());
  }
  if (simt::config.seed == 0) return;
  for (auto& group : groups) {
    for (simt::Copy& copy : group) {
      if (simt::machine.random() % 4 == 0) simt::land(copy);
    }
  }
}

struct MatrixSlot {
  uint32_t address;
  uint32_t* result;
};

template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], uint32_t address) {
  MatrixSlot mine{address, r};
  simt::collective(kAllLanes, kTransposed ? "ldmatrix.trans" : "ldmatrix", &mine, [](void** slots) {
    for (int m = 0; m < 4; ++m) {
      const uint16_t* row[8];
      unsigned banks = 0;
      for (int i = 0; i < 8; ++i) {
        const uint32_t at = static_cast<MatrixSlot*>(slots[m * 8 + i])->address;
        row[i] = reinterpret_cast<const uint16_t*>(simt::shared_at(at, 16, 16, "ldmatrix"));
        simt::note_read(at, 16, "ldmatrix");
        simt::stats.bank_conflicts += banks >> (at / 16 % 8) & 1;
        banks |= 1u << (at / 16 % 8);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int a = lane / 4, b = 2 * (lane % 4);
        const uint32_t low = kTransposed ? row[b][a] : row[a][b],
                       high = kTransposed ? row[b + 1][a] : row[a][b + 1];
        static_cast<MatrixSlot*>(slots[lane])->result[m] = low | high << 16;
      }
    }
  });
}

inline void load_shared(float& x, uint32_t address) {
  memcpy(&x, simt::shared_at(address, 4, 4, "ld.shared"), 4);
  simt::note_read(address, 4, "ld.shared");
}
inline void load_shared(float (&x)[2], uint32_t address) {
  memcpy(x, simt::shared_at(address, 8, 8, "ld.shared.v2"), 8);
  simt::note_read(address, 8, "ld.shared.v2");
}
inline void load_shared(float (&x)[4], uint32_t address) {
  memcpy(x, simt::shared_at(address, 16, 16, "ld.shared.v4"), 16);
  simt::note_read(address, 16, "ld.shared.v4");
}
inline void store_shared(uint32_t address, float x) {
  memcpy(simt::shared_at(address, 4, 4, "st.shared"), &x, 4);
  simt::note_write(address, 4, "st.shared");
}

inline float to_float(float x) { return x; }
inline float to_float(half_t x) { return simt::half_value(x); }
inline float to_float(bfloat_t x) { return simt::bfloat_value(x); }
inline void from_float(float& y, float x) { y = x; }
inline void from_float(half_t& y, float x) { y = simt::to_half(x); }
inline void from_float(bfloat_t& y, float x) { y = simt::to_bfloat(x); }

template <class T>
uint32_t pack(float low, float high) {
  T l, h;
  from_float(l, low);
  from_float(h, high);
  return l.bits | static_cast<uint32_t>(h.bits) << 16;
}
template <class T>
float2 unpack(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

struct MultiplySlot {
  float* c;
  const uint32_t *a, *b;
};

// Products of 16-bit elements are exact in float32; the sum is rounded after every addition, a
// tensor core rounds differently.
template <class T>
void multiply_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  const uint32_t b[2] = {b0, b1};
  MultiplySlot mine{c, a, b};
  simt::collective(kAllLanes, "mma.m16n8k16", &mine, [](void** slots) {
    float left[16][16], right[8][16];
    ++simt::stats.multiplies;
    for (int lane = 0; lane < 32; ++lane) {
      const auto* slot = static_cast<MultiplySlot*>(slots[lane]);
      const int g = lane / 4, q = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack<T>(slot->a[i]);
        left[g + 8 * (i & 1)][q + 8 * (i >> 1)] = pair.x;
        left[g + 8 * (i & 1)][q + 8 * (i >> 1) + 1] = pair.y;
      }
      for (int i = 0; i < 2; ++i) {
        const float2 pair = unpack<T>(slot->b[i]);
        right[g][q + 8 * i] = pair.x;
        right[g][q + 8 * i + 1] = pair.y;
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + 8 * (e >> 1), column = 2 * (lane % 4) + (e & 1);
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
        static_cast<MultiplySlot*>(slots[lane])->c[e] += sum;
      }
    }
  });
}

}  // namespace cuda
}  // namespace alibi

#endif  // SIMT_DEVICE_H_
