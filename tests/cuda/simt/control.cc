// What the tests say to the model and ask of it, as C functions for ctypes.
#include <sys/mman.h>

#include <map>

#include "machine.h"
#include "runtime.h"

namespace simt {

namespace {
constexpr size_t kPage = 4096;
struct Mapping {
  void* base;
  size_t bytes;
};
std::map<void*, Mapping>& mappings() {
  static std::map<void*, Mapping> table;
  return table;
}
}  // namespace

void* allocate(size_t bytes) {
  const size_t body = (bytes + kPage - 1) / kPage * kPage, total = body + 2 * kPage;
  char* base = static_cast<char*>(
      mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(base, kPage, PROT_NONE);
  mprotect(base + kPage + body, kPage, PROT_NONE);
  memset(base + kPage, 0xff, body);
  void* memory = base + kPage + body - (bytes + 15) / 16 * 16;
  mappings()[memory] = {base, total};
  return memory;
}

void release(void* memory) {
  const auto found = mappings().find(memory);
  if (found == mappings().end()) return;
  munmap(found->second.base, found->second.bytes);
  mappings().erase(found);
}

}  // namespace simt

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void simt_configure(uint64_t seed, int races, int naive, int multiprocessors, int capability,
                           uint32_t shared_base) {
  simt::config = {seed, races != 0, naive != 0, multiprocessors, capability, shared_base};
  simt::stats = {};
}
EXPORT void simt_stats(int64_t* values) {
  values[0] = simt::stats.multiplies;
  values[1] = simt::stats.async_copies;
  values[2] = simt::stats.bank_conflicts;
  values[3] = simt::stats.blocks;
  values[4] = simt::stats.boxes;
  values[5] = simt::stats.wide_products;
}
// Memory whose end lies (to 16 bytes) at a page that faults.
EXPORT void* simt_allocate(size_t bytes) { return simt::allocate(bytes); }
EXPORT void simt_release(void* memory) { simt::release(memory); }

// Which device is current, and whether its driver refuses pools.
EXPORT void simt_device(int device, int refused) {
  simt::pools().device = device;
  simt::pools().refused = refused != 0;
}
// Of the scratch memory of a device: how many pools it has, what the last of them keeps, how often
// memory was given and came back; and the capture mode that the last call has left.
EXPORT void simt_pool(int device, int64_t* values) {
  memset(values, 0, 4 * sizeof *values);
  values[4] = simt::pools().mode;
  for (const simt::Pool* pool : simt::pools().made) {
    if (pool->device != device) continue;
    ++values[0];
    values[1] = static_cast<int64_t>(pool->kept);
    values[2] += pool->given;
    values[3] += pool->back;
  }
}
