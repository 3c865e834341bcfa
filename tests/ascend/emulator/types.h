// Part of kernel_operator.h: macros, scalar types and enumerations.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_TYPES_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_TYPES_H_

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "machine.h"

#define __aicore__
#define __global__
#define __gm__
// A device build has "constexpr (...)" here, which may follow an "if" and nothing else; so may these.
#define ASCEND_IS_AIC (; emu::machine().core() == emu::kAic)
#define ASCEND_IS_AIV (; emu::machine().core() != emu::kAic)
#define KERNEL_TASK_TYPE_DEFAULT(type) (void)type
#define REGISTER_TILING_DEFAULT(type) \
  static_assert(std::is_trivially_copyable<type>::value, "tiling is plain data")
#define GET_TILING_DATA_WITH_STRUCT(type, name, address) \
  type name;                                             \
  std::memcpy(&name, address, sizeof(type))

#define GM_ADDR __gm__ uint8_t*  // a macro there too: "GM_ADDR a, b" declares one pointer
using half = _Float16;

// The upper half of a float, rounded to nearest even.
struct bfloat16_t {
  uint16_t bits = 0;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits =
        value != value ? 0x7fc0 : static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

enum { KERNEL_TYPE_MIX_AIC_1_2 = 1 };
enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };
enum event_t {
  EVENT_ID0,
  EVENT_ID1,
  EVENT_ID2,
  EVENT_ID3,
  EVENT_ID4,
  EVENT_ID5,
  EVENT_ID6,
  EVENT_ID7
};
enum class QuantMode_t { NoQuant, F322F16, F322BF16 };

namespace AscendC {

using emu::Instruction;
using emu::Kind;
using emu::machine;
using emu::Span;

enum class TPosition { GM, A1, B1, A2, B2, CO1, VECIN, VECOUT, VECCALC };
enum class HardEvent {
  MTE2_MTE1,
  MTE1_MTE2,
  MTE1_M,
  M_MTE1,
  M_FIX,
  FIX_M,
  MTE2_V,
  V_MTE2,
  MTE3_V,
  V_MTE3,
  MTE2_S,
  V_S,
  S_V,
  MTE3_MTE2,
  MTE2_MTE3
};
enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC };
enum class ReduceOrder { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE };
enum class CO2Layout { NZ, ROW_MAJOR };
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

struct FixpipeConfig {
  CO2Layout format;
};
constexpr FixpipeConfig CFG_ROW_MAJOR = {CO2Layout::ROW_MAJOR};

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_TYPES_H_
