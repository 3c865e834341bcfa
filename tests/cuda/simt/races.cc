// Checks of every access to shared memory: bounds, alignment, and races.
//
// An access is ordered after another warp's when that warp's time is one that this warp has
// synchronised with.
#include "machine.h"

namespace simt {

char* shared_at(uint32_t address, size_t bytes, size_t alignment, const char* what) {
  if (address % alignment != 0) {
    fail(std::string(what) + ": shared address " + std::to_string(address) + " not aligned to " +
         std::to_string(alignment));
  }
  if (address < config.shared_base || address + bytes > config.shared_base + machine.shared_bytes) {
    fail(std::string(what) + ": shared address " + std::to_string(address) + " outside the " +
         std::to_string(machine.shared_bytes) + " bytes of the block");
  }
  return machine.shared + address;
}

namespace {
[[noreturn]] void race(const char* what, const char* does, uint32_t word, const char* why) {
  fail(std::string("RACE: ") + what + " " + does + " shared byte " + std::to_string(2 * word) +
       " " + why);
}
}  // namespace

void note_read(uint32_t address, int bytes, const char* what, bool async) {
  if (!config.races) return;
  const int me = machine.warp_index();
  const Clock& clock = machine.warp().clock;
  for (uint32_t i = address / 2; i < (address + static_cast<uint32_t>(bytes) + 1) / 2; ++i) {
    Shadow& s = machine.shadow[i];
    if (s.written == kPending)
      race(what, "reads", i, "while a copy to it is in flight (missing wait)");
    if (s.writer != me && s.written > clock.at[s.writer])
      race(what, "reads", i, "written by another agent, no barrier since");
    if (async && s.unfenced)
      race(what, "reads", i, "stored by a thread, no async proxy fence since");
    s.read[me] = clock.at[me];
  }
}

void note_write(uint32_t address, int bytes, const char* what, bool pending, int agent) {
  if (!config.races) return;
  const bool by_thread = agent < 0;
  const int me = machine.warp_index();
  const Clock& clock = machine.warp().clock;
  for (uint32_t i = address / 2; i < (address + static_cast<uint32_t>(bytes) + 1) / 2; ++i) {
    Shadow& s = machine.shadow[i];
    if (s.written == kPending || (s.writer != me && s.written > clock.at[s.writer])) {
      race(what, "writes", i, "that another warp or copy is writing");
    }
    if (s.runs != 0) race(what, "writes", i, "that a run may still be reading (missing wait)");
    for (size_t w = 0; w < machine.warps.size(); ++w) {
      if (static_cast<int>(w) != me && s.read[w] > clock.at[w]) {
        race(what, "writes", i, "that another warp may still be reading");
      }
    }
    if (!by_thread && s.unfenced)
      race(what, "writes", i, "with no async proxy fence since a store");
    s.writer = by_thread ? me : agent;
    s.written = pending ? kPending : clock.at[me];
    s.unfenced = by_thread && config.capability >= 90;
    if (s.unfenced) machine.current->unfenced.push_back(i);
  }
}

void note_landed(uint32_t address, int bytes) {
  note_landed(address, bytes, machine.warp_index(), machine.warp().clock.at[machine.warp_index()]);
}

void note_landed(uint32_t address, int bytes, int agent, uint32_t time) {
  if (!config.races) return;
  for (uint32_t i = address / 2; i < (address + static_cast<uint32_t>(bytes)) / 2; ++i) {
    machine.shadow[i].writer = agent;
    machine.shadow[i].written = time;
  }
}

void note_run(uint32_t address, int bytes, bool starts) {
  if (!config.races) return;
  const int me = machine.warp_index();
  for (uint32_t i = address / 2; i < (address + static_cast<uint32_t>(bytes)) / 2; ++i) {
    Shadow& s = machine.shadow[i];
    if (s.written == 0) race("a run", "reads", i, "that nobody has written");
    s.runs += starts ? 1 : -1;
    s.read[me] = machine.warp().clock.at[me];
  }
}

}  // namespace simt
