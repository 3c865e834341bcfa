// The table of tuning.h. Measured on Zen 4 and on Zen 5 (docs/design/0015): AMD's earlier CPUs count as
// the one, all others as the other.
#include "tuning.h"

#include <atomic>

namespace alibi::cpu {
namespace {

#if defined(__x86_64__)
bool is_zen_1_to_4() { return __builtin_cpu_is("amdfam17h") || __builtin_cpu_is("amdfam19h"); }
#else
bool is_zen_1_to_4() { return false; }
#endif
bool is_any() { return true; }

constexpr int64_t kNever = INT64_MAX;

struct Row {
  bool (*here)();
  Tuning tuning;
};

// The first row that is here counts. Zen 4 drops requests to memory when there are many, those for the
// first level most of all; Zen 5 gains by each. Zen 4 executes vectors of 512 bits in two halves.
// {here, {block_bytes, ahead_bytes, near, far_bytes, halves}}
constexpr Row kRows[] = {
    {is_zen_1_to_4, {{8192, 8192}, {1024, 512}, false, kNever, true}},
    {is_any, {{32768, 8192}, {4096, 8192}, true, 2 << 20, false}},
};
constexpr int kCount = sizeof(kRows) / sizeof(kRows[0]);

int of_this_cpu() {
  for (int row = 0;; ++row) {
    if (kRows[row].here()) return row;
  }
}

std::atomic<int> chosen{-1};

}  // namespace

const Tuning& tuning() noexcept {
  static const int here = of_this_cpu();
  const int row = chosen.load(std::memory_order_relaxed);
  return kRows[row < 0 ? here : row].tuning;
}

int choose_tuning(int row) noexcept {
  if (row < kCount) chosen.store(row, std::memory_order_relaxed);
  return kCount;
}

}  // namespace alibi::cpu
