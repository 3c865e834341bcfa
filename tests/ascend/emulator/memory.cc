// Memories of the machine and the rules for accesses to them (machine.h tells them).
#include <algorithm>

#include "machine.h"

namespace emu {

void Memory::reset() {
  std::fill(bytes.begin(), bytes.end(), uint8_t{0xff});  // NaN as half, bfloat16 and float
  std::fill(shadow.begin(), shadow.end(), Shadow());
  allocated = 0;
}

Region& Machine::add_region(const char* name, Use use, void* base, uint64_t size) {
  auto region = std::make_unique<Region>();
  region->name = name;
  region->use = use;
  region->base = static_cast<uint8_t*>(base);
  region->size = size;
  if (use == Use::kWorkspace) region->shadow.resize((size + kGranule - 1) / kGranule);
  if (use == Use::kOutput) region->written.resize(size);
  Region& result = *region;
  regions_[region->base] = std::move(region);
  return result;
}

Region& Machine::region_of(const void* address, uint64_t size, const char* what) {
  const auto* byte = static_cast<const uint8_t*>(address);
  auto it = regions_.upper_bound(byte);
  if (it == regions_.begin()) fail("%s: address outside every tensor", what);
  Region& region = *std::prev(it)->second;
  if (byte + size > region.base + region.size) {
    fail("%s: %llu bytes at offset %lld run past the end of %s (%llu bytes)", what,
         static_cast<unsigned long long>(size), static_cast<long long>(byte - region.base),
         region.name.c_str(), static_cast<unsigned long long>(region.size));
  }
  return region;
}

void Machine::check_outputs_complete() const {
  for (const auto& [base, region] : regions_) {
    if (region->use != Use::kOutput) continue;
    const auto hole = std::find(region->written.begin(), region->written.end(), 0);
    if (hole != region->written.end()) {
      fail("%s: byte %td of %llu was never written", region->name.c_str(),
           hole - region->written.begin(), static_cast<unsigned long long>(region->size));
    }
  }
}

void Machine::access(int agent, const Span& span, const Instruction& instruction) {
  const char* name = instruction.name;
  if (span.memory) {
    for (uint64_t g = span.begin / kGranule; g * kGranule < span.end; ++g) {
      touch(agent, span.memory->shadow[g], span.write, instruction.accumulates,
            span.memory->name.c_str(), name);
    }
    return;
  }
  Region& region = *span.region;
  if (region.use == Use::kInput && span.write)
    fail("%s writes the input %s", name, region.name.c_str());
  if (region.use == Use::kOutput) {
    if (!span.write) fail("%s reads the output %s", name, region.name.c_str());
    for (uint64_t i = span.begin; i < span.end; ++i) {
      if (region.written[i]++)
        fail("%s writes byte %llu of %s twice", name, static_cast<unsigned long long>(i),
             region.name.c_str());
    }
  }
  if (region.use == Use::kWorkspace) {
    for (uint64_t g = span.begin / kGranule; g * kGranule < span.end; ++g) {
      if (!shared(region.shadow[g], agent, span.write, region.name.c_str(), name))
        touch(agent, region.shadow[g], span.write, false, region.name.c_str(), name);
    }
  }
}

// True if another block owns this piece of workspace. Then it may be read, provided that the last
// meeting that the agent knows of came after the owner's write, and nobody may write it any more.
bool Machine::shared(Shadow& shadow, int agent, bool write, const char* where, const char* name) {
  if (shadow.owner < 0) shadow.owner = block_;
  if (write && (shadow.owner != block_ || shadow.shared))
    fail("%s writes %s, which blocks %d and %d share", name, where, shadow.owner, block_);
  if (shadow.owner == block_) return false;
  const Clock& complete = meetings_[at_->meeting[agent]][shadow.owner];
  if (shadow.writer < 0 || shadow.write > complete.seen[shadow.writer])
    fail(
        "race in %s: %s on %s of block %d reads what block %d writes; they share it without having "
        "met",
        where, name, kCoreNames[agent / kPipes], block_, shadow.owner);
  shadow.shared = true;
  return true;
}

void Machine::touch(int agent, Shadow& shadow, bool write, bool accumulates, const char* where,
                    const char* name) {
  const Clock& clock = at_->clock[agent];
  const bool hardware_ordered = accumulates && shadow.writer == agent;
  // An instruction does not race with itself: its own number is the last one executed by this
  // agent.
  auto unknown = [&](int other, uint32_t number) {
    return number > clock.seen[other] && !(other == agent && number == at_->executed[agent]);
  };
  if (shadow.writer >= 0 && !hardware_ordered && unknown(shadow.writer, shadow.write)) {
    fail("race in %s: %s on %s %s %s what %s %s wrote, without synchronisation", where, name,
         kCoreNames[agent / kPipes], kPipeNames[agent % kPipes], write ? "overwrites" : "reads",
         kCoreNames[shadow.writer / kPipes], kPipeNames[shadow.writer % kPipes]);
  }
  if (write) {
    for (int other = 0; other < kAgents; ++other) {
      if (!hardware_ordered && unknown(other, shadow.reads[other])) {
        fail("race in %s: %s on %s %s overwrites what %s %s may still read", where, name,
             kCoreNames[agent / kPipes], kPipeNames[agent % kPipes], kCoreNames[other / kPipes],
             kPipeNames[other % kPipes]);
      }
    }
    shadow.writer = static_cast<int16_t>(agent);
    shadow.write = at_->executed[agent];
  } else {
    shadow.reads[agent] = at_->executed[agent];
  }
}

}  // namespace emu
