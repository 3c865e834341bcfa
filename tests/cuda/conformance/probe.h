// What the conformance programs share: inputs, the table of probes, and a JSON document of what went
// in and what came out.
//
// A probe runs one instruction of the kernels, through the kernels' own wrapper, mostly in one
// thread block: word i of thread t comes from in[i * threads + t] and goes to out[i * threads + t]. On a
// GPU the document is golden data; the CPU model must print the same. conformance.py compares.
#ifndef ALIBI_CONFORMANCE_PROBE_H_
#define ALIBI_CONFORMANCE_PROBE_H_

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#ifdef ALIBI_CPU_MODEL
#include "simt/device.h"
#include "simt/runtime.h"
#else
#include <cuda_runtime.h>
#endif

namespace conformance {

enum Fill { kWords, kFloats, kExponents, kHalfIntegers, kBfloatIntegers, kHalves, kBfloats };

// How results are compared: bit by bit; floats by their own size; floats that are sums by the size
// of the largest.
enum Compare { kExact, kRelative, kSum };
constexpr const char* kCompareNames[] = {"exact", "relative", "sum"};

struct Probe {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*);
  Fill fill;
  Compare compare;
  int threads;
  int shared_bytes;
  int in_words;   // per thread
  int out_words;  // per thread
  // Called with the input in device memory before the kernel runs; false ends the program.
  bool (*prepare)(uint32_t*) = nullptr;
  int blocks = 1;
};

// ---- inputs, the same on every machine

struct Random {
  uint32_t state = 1;
  uint32_t next() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;  // the low bits of such a generator repeat early
  }
};

inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Integers from -8 to 8: products and sums of those are exact in float32 in any order.
inline uint16_t half_integer(int n) {
  constexpr uint16_t kBits[] = {0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800};
  return static_cast<uint16_t>(kBits[n < 0 ? -n : n] | (n < 0 ? 0x8000 : 0));
}
inline uint16_t bfloat_integer(int n) {
  return static_cast<uint16_t>(float_bits(static_cast<float>(n)) >> 16);
}

// Floats at which rounding to 16 bits is decided: ties, the ends of the ranges, no numbers.
inline float special_float(int i, Random& random) {
  constexpr uint32_t kBits[] = {
      0x00000000, 0x80000000, 0x3f800000, 0x7f800000, 0xff800000, 0x7fc00000,
      0x477fe000, 0x477fefff, 0x477ff000, 0xc77ff000,  // around the largest half
      0x3f801000, 0x3f803000, 0x3f801001,              // ties between halves
      0x3f808000, 0x3f818000, 0x3f808001,              // ties between bfloats
      0x33800000, 0x33000000, 0x33000001, 0x387fc000, 0x387fe000, 0x38800000,  // small halves
      0x7f7f7fff, 0x7f7f8000, 0x00008000, 0x00018000, 0x007fffff};
  constexpr int kCount = static_cast<int>(sizeof(kBits) / sizeof(kBits[0]));
  const uint32_t drawn = random.next() << 8 | (random.next() & 255);
  const uint32_t bits = i < kCount ? kBits[i] : (drawn & 0x8fffffff) | 0x38000000;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t input_word(Fill fill, int i, Random& random) {
  uint32_t word = 0;
  switch (fill) {
    case kWords:
      return random.next() << 8 | (random.next() & 255);
    case kFloats:
      return float_bits(special_float(i, random));
    case kExponents:  // from 2^-140 to 2^20
      return float_bits(static_cast<float>(random.next() % 160000) / 1000.0f - 140.0f);
    case kHalfIntegers:
    case kBfloatIntegers:
      for (int half = 0; half < 2; ++half) {
        const int n = static_cast<int>(random.next() % 17) - 8;
        word |= static_cast<uint32_t>(fill == kHalfIntegers ? half_integer(n) : bfloat_integer(n))
                << 16 * half;
      }
      return word;
    case kHalves:  // 2^-3 to 2^2, either sign
    case kBfloats:
      for (int half = 0; half < 2; ++half) {
        const uint32_t x = random.next();
        const uint32_t bits = fill == kHalves ? (x & 0x83ff) | (12 + x / 65536 % 5) << 10
                                              : (x & 0x807f) | (124 + x / 65536 % 5) << 7;
        word |= bits << 16 * half;
      }
      return word;
  }
  return word;
}

inline std::vector<uint32_t> make_input(const Probe& probe) {
  Random random;
  std::vector<uint32_t> in(static_cast<size_t>(probe.in_words * probe.threads));
  for (size_t i = 0; i < in.size(); ++i)
    in[i] = input_word(probe.fill, static_cast<int>(i), random);
  return in;
}

// ---- running

#ifdef ALIBI_CPU_MODEL
constexpr const char* kPlatform = "cpu model";

inline const char* run(const Probe& probe, const std::vector<uint32_t>& in,
                       std::vector<uint32_t>* out) {
  auto* source = static_cast<uint32_t*>(simt::allocate(in.size() * 4));
  memcpy(source, in.data(), in.size() * 4);
  const uint32_t* input = source;
  if (probe.prepare != nullptr && !probe.prepare(source)) return "it cannot be prepared";
  const cudaError_t error = simt::launch(probe.kernel, static_cast<unsigned>(probe.blocks),
                                         probe.threads, probe.shared_bytes, input, out->data());
  simt::release(source);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#else
constexpr const char* kPlatform = "cuda";

inline const char* run(const Probe& probe, const std::vector<uint32_t>& in,
                       std::vector<uint32_t>* out) {
  uint32_t *source = nullptr, *target = nullptr;
  cudaError_t error = cudaSuccess;
  const auto note = [&](cudaError_t next) { error = error == cudaSuccess ? next : error; };
  note(cudaMalloc(&source, in.size() * 4));
  note(cudaMalloc(&target, out->size() * 4));
  note(cudaMemcpy(source, in.data(), in.size() * 4, cudaMemcpyHostToDevice));
  note(cudaMemcpy(target, out->data(), out->size() * 4, cudaMemcpyHostToDevice));
  note(cudaFuncSetAttribute(reinterpret_cast<const void*>(probe.kernel),
                            cudaFuncAttributeMaxDynamicSharedMemorySize, probe.shared_bytes));
  if (error == cudaSuccess && probe.prepare != nullptr && !probe.prepare(source))
    return "it cannot be prepared";
  if (error == cudaSuccess) {
    // clang-format off
    probe.kernel<<<static_cast<unsigned>(probe.blocks), probe.threads, static_cast<size_t>(probe.shared_bytes)>>>(source, target);
    // clang-format on
    note(cudaGetLastError());
  }
  note(cudaMemcpy(out->data(), target, out->size() * 4, cudaMemcpyDeviceToHost));
  cudaFree(source);
  cudaFree(target);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

inline void print_words(const char* name, const std::vector<uint32_t>& words) {
  printf("\"%s\": \"", name);
  for (size_t i = 0; i < words.size(); ++i) printf(i == 0 ? "%08x" : " %08x", words[i]);
  printf("\"");
}

// Runs all probes and prints the document; the exit status of the program, whose argument is the
// seed of the model's schedule.
template <int kCount>
int run_all(const Probe (&probes)[kCount], int count, char** arguments) {
#ifdef ALIBI_CPU_MODEL
  simt::config.seed = count > 1 ? strtoull(arguments[1], nullptr, 10) : 0;
#else
  static_cast<void>(count), static_cast<void>(arguments);
#endif
  printf("{\"platform\": \"%s\", \"probes\": {", kPlatform);
  const char* separator = "\n";
  for (const Probe& probe : probes) {
    const std::vector<uint32_t> in = make_input(probe);
    // What a probe does not write shows.
    std::vector<uint32_t> out(static_cast<size_t>(probe.out_words * probe.threads), 0xdeadbeefu);
    const char* error = run(probe, in, &out);
    if (error != nullptr) {
      fprintf(stderr, "%s: %s\n", probe.name, error);
      return 1;
    }
    printf("%s\"%s\": {\"compare\": \"%s\", ", separator, probe.name, kCompareNames[probe.compare]);
    print_words("in", in);
    printf(", ");
    print_words("out", out);
    printf("}");
    separator = ",\n";
  }
  printf("\n}}\n");
  return 0;
}

}  // namespace conformance

#endif  // ALIBI_CONFORMANCE_PROBE_H_
