// The three element types of a tensor. Sums are always float32; the 16-bit types exist only in
// memory and, with AVX-512 BF16, as factors.
#ifndef ALIBI_CPU_DTYPE_H_
#define ALIBI_CPU_DTYPE_H_

#include <stdint.h>

#define ALIBI_INLINE inline __attribute__((always_inline))

namespace alibi::cpu {

struct Half {  // IEEE binary16
  uint16_t bits;
};
struct BFloat16 {  // the upper half of a float32
  uint16_t bits;
};

}  // namespace alibi::cpu

#endif  // ALIBI_CPU_DTYPE_H_
