// Part of kernel_operator.h: the matrix unit.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_CUBE_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_CUBE_H_

#include "transfers.h"

namespace AscendC {

struct MmadParams {
  uint16_t m = 0, n = 0, k = 0;
  uint8_t unitFlag = 0;
  bool cmatrixSource = false, cmatrixInitVal = true;
};

// C [m, n] (+)= A [m, k] B [k, n] in float. L0A holds A in 16x16 fractals row by row, each
// row-major; L0B holds B in fractals row by row, each column-major; L0C holds C in column groups of
// 16. Rows and columns past m, n, k are ignored on input and come out unspecified (NaN here). Unset
// memory as an operand is a fault: the unit may trap on NaN.
template <typename T>
void Mmad(const LocalTensor<float>& c, const LocalTensor<T>& a, const LocalTensor<T>& b,
          const MmadParams& p) {
  const char* name = "Mmad";
  check_range(name, "m", p.m, 2,
              4095);  // 1 would select the vector form, which reads A in another layout
  check_range(name, "n", p.n, 1, 4095);
  check_range(name, "k", p.k, 1, 4095);
  if (p.cmatrixSource || p.unitFlag) emu::fail("Mmad: bias table and unit flag are not modelled");
  a.check(name, emu::kL0a, 512);
  b.check(name, emu::kL0b, 512);
  c.check(name, emu::kL0c, 1024);
  const uint32_t mb = (p.m + 15) / 16, nb = (p.n + 15) / 16, kb = (p.k + 15) / 16;
  std::vector<Span> spans = {a.span(name, 0, mb * kb * 512, false),
                             b.span(name, 0, nb * kb * 512, false)};
  if (!p.cmatrixInitVal) spans.push_back(c.span(name, 0, mb * nb * 1024, false));
  spans.push_back(c.span(name, 0, mb * nb * 1024, true));
  Instruction instruction;
  instruction.name = name;
  instruction.spans = std::move(spans);
  instruction.accumulates =
      !p.cmatrixInitVal && (p.m / 16) * (p.n / 16) >= 10;  // documented: large enough orders itself
  instruction.run = [=] {
    auto value = [&](const T& x) {
      uint16_t bits;
      std::memcpy(&bits, &x, 2);
      if (bits == 0xffff) emu::fail("Mmad: an operand was never written");
      return static_cast<float>(x);
    };
    std::vector<float> bt(p.n * p.k);
    for (uint32_t j = 0; j < p.n; ++j) {
      for (uint32_t x = 0; x < p.k; ++x)
        bt[j * p.k + x] = value(b.data()[((x / 16) * nb + j / 16) * 256 + j % 16 * 16 + x % 16]);
    }
    std::vector<float> row(p.k);
    for (uint32_t i = 0; i < mb * 16; ++i) {
      if (i < p.m) {
        for (uint32_t x = 0; x < p.k; ++x)
          row[x] = value(a.data()[((i / 16) * kb + x / 16) * 256 + i % 16 * 16 + x % 16]);
      }
      for (uint32_t j = 0; j < nb * 16; ++j) {
        float* out = c.data() + (j / 16 * mb * 16 + i) * 16 + j % 16;
        if (i >= p.m || j >= p.n) {
          *out = NAN;
          continue;
        }
        float sum = p.cmatrixInitVal ? 0.0f : *out;
        const float* column = &bt[j * p.k];
        for (uint32_t x = 0; x < p.k; ++x) sum += row[x] * column[x];
        *out = sum;
      }
    }
    machine().counts.macs += uint64_t{p.m} * p.n * p.k;
  };
  machine().issue(emu::kM, std::move(instruction));
}

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_CUBE_H_
