// How a decode step asks memory for what it will read next. Its arithmetic is the same on every CPU;
// what the hardware prefetches by itself, and how many requests it keeps, is not.
#ifndef ALIBI_CPU_STREAMING_H_
#define ALIBI_CPU_STREAMING_H_

#include <stdint.h>

namespace alibi::cpu {

struct Streaming {
  // Per size of an element: of float32, of 16 bits.
  int64_t block_bytes[2];  // of K, after which V has its turn
  int64_t ahead_bytes[2];  // from what is read to what is asked for
  bool near;               // into the first level of the cache instead of the second
};

// Of this CPU, or of the row of the table that choose_streaming() named; -1: of this CPU again.
const Streaming& streaming() noexcept;
int choose_streaming(int row) noexcept;  // how many rows there are

}  // namespace alibi::cpu

#endif  // ALIBI_CPU_STREAMING_H_
