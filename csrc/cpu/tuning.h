// What the kernels do differently on CPUs that execute the same instructions: what took less time
// there.
#ifndef ALIBI_CPU_TUNING_H_
#define ALIBI_CPU_TUNING_H_

#include <stdint.h>

namespace alibi::cpu {

struct Tuning {
  // How a decode step asks memory for what it will read next. Sizes are those of float32 and of 16
  // bits.
  int64_t block_bytes[2];  // of K, after which V has its turn
  int64_t ahead_bytes[2];  // from what is read to what is asked for
  bool near;               // into the first level of the cache instead of the second
  // From how many bytes of keys and values on a head is far away, so that tiles of rows had better
  // share them.
  int64_t far_bytes;
  // Whether half a vector of AVX-512 takes half the time (first_tile.inl.h).
  bool halves;
};

// Of this CPU, or of the row of the table that choose_tuning() named; -1: of this CPU again.
const Tuning& tuning() noexcept;
int choose_tuning(int row) noexcept;  // how many rows there are

}  // namespace alibi::cpu

#endif  // ALIBI_CPU_TUNING_H_
