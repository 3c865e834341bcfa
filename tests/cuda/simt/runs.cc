// Runs of bytes from shared to device memory, and the flags in device memory by which blocks wait
// for each other.
//
// A run reads its source and writes its target at the last wait that allows it, at the end of the
// launch if there is none; in other schedules than the default one, sometimes when it is started.
//
// Blocks run one after another here, so what one does without waiting for another looks well. Two
// things make it visible. Each block's clock goes into the flags that it sets, and a run over bytes
// that another block's run has written must be behind a flag that this block set after its wait,
// and behind a proxy fence. And a flag may be read as it was before: any value that is not older
// than what the thread knows, as a GPU may have it that runs the blocks at the same time.
#include "hopper.h"

namespace simt {

namespace {

constexpr int kIdlePolls = 1000;  // of a thread that alone could go on, before it is given up
constexpr int kNoRelease = -1;

// Whose runs have written bytes of device memory last.
struct Written {
  uintptr_t end;
  int64_t run;
  unsigned block;
  int warp;
  uint32_t time;  // of the warp, when it had waited; kPending before
};

// A value of a flag, as one st.release stored it.
struct Release {
  unsigned block;
  int warp;
  Clock clock;            // of the warp
  std::vector<int> seen;  // what it had acquired before
};

struct FlagValue {
  int value;
  int release;  // kNoRelease: not by st.release
};

// What the blocks of one launch share.
struct Device {
  std::map<uintptr_t, Written> written;  // by the first byte
  std::vector<Release> releases;
  std::map<const int*, std::vector<FlagValue>> flags;  // oldest value first
  std::vector<Run> late;  // never waited for, in the order of their threads' ends
  int64_t runs = 0;
};
Device device;

int me() { return machine.warp_index(); }
uint32_t now() { return machine.warp().clock.at[me()]; }
bool synchronised(const Moment& moment) {
  return moment.warp == me() || machine.warp().clock.at[moment.warp] >= moment.time;
}

// Whether this release, or one that it had seen, comes after that time of another block.
bool covers(int release, unsigned block, const Moment& moment) {
  std::vector<int> queue = {release};
  std::vector<bool> queued(device.releases.size());
  for (size_t i = 0; i < queue.size(); ++i) {
    const Release& r = device.releases[static_cast<size_t>(queue[i])];
    if (r.block == block && r.clock.at[moment.warp] >= moment.time) return true;
    for (const int earlier : r.seen) {
      if (!queued[static_cast<size_t>(earlier)]) queue.push_back(earlier);
      queued[static_cast<size_t>(earlier)] = true;
    }
  }
  return false;
}

enum class Order { kUnknown, kUnfenced, kKnown };

// What this thread knows of that time of a block. Fenced: also for the async proxy.
Order order_after(unsigned block, const Moment& moment) {
  if (block == block_index.x) return synchronised(moment) ? Order::kKnown : Order::kUnknown;
  Order order = Order::kUnknown;
  for (size_t i = hopper.acquired.size(); i-- > 0;) {  // most often it is the last one
    const Acquired& a = hopper.acquired[i];
    if (!synchronised(a.when) || !covers(a.release, block, moment)) continue;
    if (std::any_of(a.fences.begin(), a.fences.end(), synchronised)) return Order::kKnown;
    order = Order::kUnfenced;
  }
  return order;
}

void check_order(const void* memory, int bytes, const char* what) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t end = begin + static_cast<uintptr_t>(bytes);
  auto i = device.written.upper_bound(begin);
  if (i != device.written.begin()) --i;
  for (; i != device.written.end() && i->first < end; ++i) {
    const Written& w = i->second;
    if (w.end <= begin) continue;
    const std::string race = std::string("RACE: ") + what + " meets bytes in device memory that ";
    const std::string whose = "a run of block " + std::to_string(w.block);
    if (w.time == kPending) fail(race + whose + " may still be writing");
    const Order order = order_after(w.block, {w.warp, w.time});
    if (order == Order::kUnknown)
      fail(race + whose + " has written, with no flag or barrier since");
    if (order == Order::kUnfenced)
      fail(race + whose + " has written, with no async proxy fence since the flag");
  }
}

void note_start(const Run& run) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(run.target);
  const uintptr_t end = begin + static_cast<uintptr_t>(run.bytes);
  auto i = device.written.upper_bound(begin);
  if (i != device.written.begin()) --i;
  while (i != device.written.end() && i->first < end) {
    const uintptr_t first = i->first;
    const Written old = i->second;
    if (old.end <= begin) {
      ++i;
      continue;
    }
    i = device.written.erase(i);
    if (first < begin) {
      device.written[first] = old;
      device.written[first].end = begin;
    }
    if (old.end > end) device.written[end] = old;
  }
  device.written[begin] = {end, run.number, block_index.x, me(), kPending};
}

void note_end(const Run& run) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(run.target);
  const uintptr_t end = begin + static_cast<uintptr_t>(run.bytes);
  for (auto i = device.written.lower_bound(begin); i != device.written.end() && i->first < end; ++i)
    if (i->second.run == run.number) i->second.time = now();
}

void read_source(Run& run) {
  if (!run.data.empty()) return;
  const char* source = machine.shared + run.source;
  run.data.assign(source, source + run.bytes);
}

void release_source(Run& run) {
  read_source(run);
  if (run.holds_source) note_run(run.source, run.bytes, false);
  run.holds_source = false;
}

void write_target(Run& run) {
  if (run.arrived) return;
  run.arrived = true;
  read_source(run);
  if (!run.adds) {
    memcpy(run.target, run.data.data(), run.data.size());
    return;
  }
  for (size_t i = 0; i < run.data.size(); i += sizeof(float)) {
    float sum, term;
    memcpy(&sum, run.target + i, sizeof sum);
    memcpy(&term, &run.data[i], sizeof term);
    sum += term;
    memcpy(run.target + i, &sum, sizeof sum);
  }
}

void wake_pollers() {
  for (const int id : hopper.pollers) wake(id);
  hopper.pollers.clear();
}

std::vector<FlagValue>& values_of(const int* flag, const char* what) {
  if (reinterpret_cast<uintptr_t>(flag) % sizeof(int) != 0)
    fail(std::string(what) + ": address not aligned to 4 bytes");
  std::vector<FlagValue>& values = device.flags[flag];
  if (values.empty() || values.back().value != *flag) values.push_back({*flag, kNoRelease});
  return values;
}

// Whether this thread may no longer see an older value.
bool knows(const FlagValue& value) {
  if (value.release == kNoRelease) return true;
  const Release& r = device.releases[static_cast<size_t>(value.release)];
  return order_after(r.block, {r.warp, r.clock.at[r.warp]}) != Order::kUnknown;
}

}  // namespace

void begin_launch() { device = Device(); }
void end_launch() {
  for (Run& run : device.late) write_target(run);
  device = Device();
}

// ---- runs

void check_run(const void* memory, uint32_t shared, int bytes, const char* what) {
  if (bytes <= 0 || bytes % 16 != 0) fail(std::string(what) + ": bad size");
  if (reinterpret_cast<uintptr_t>(memory) % 16 != 0)
    fail(std::string(what) + ": global address not aligned to 16 bytes");
  shared_at(shared, static_cast<size_t>(bytes), 16, what);
  if (config.races) check_order(memory, bytes, what);
}

void start_run(void* target, uint32_t source, int bytes, bool adds) {
  const char* what = adds ? "cp.reduce.async.bulk" : "cp.async.bulk";
  check_run(target, source, bytes, what);
  note_read(source, bytes, what, true);
  note_run(source, bytes, true);
  Run run = {static_cast<char*>(target), source, bytes, adds, device.runs++, {}, true, false};
  if (config.races) note_start(run);
  const uint32_t early = config.naive ? 0 : config.seed != 0 ? machine.random() % 4 : 3;
  if (early <= 1) read_source(run);
  if (early == 0) write_target(run);
  ++stats.runs;
  hopper.runs[machine.current->id].open.push_back(std::move(run));
}

void commit_runs() {
  Runs& mine = hopper.runs[machine.current->id];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

void wait_for_runs(size_t groups, bool read_only) {
  Runs& mine = hopper.runs[machine.current->id];
  const size_t old = mine.groups.size() > groups ? mine.groups.size() - groups : 0;
  for (size_t g = 0; g < old; ++g) {
    for (Run& run : mine.groups[g]) {
      release_source(run);
      if (read_only) continue;
      write_target(run);
      if (config.races) note_end(run);
    }
  }
  if (!read_only)
    mine.groups.erase(mine.groups.begin(), mine.groups.begin() + static_cast<std::ptrdiff_t>(old));
}

void end_thread_runs() {
  const auto found = hopper.runs.find(machine.current->id);
  if (found == hopper.runs.end()) return;
  if (!found->second.open.empty()) fail("thread ends with runs that it never committed");
  for (std::vector<Run>& group : found->second.groups) {
    for (Run& run : group) {
      if (run.holds_source)
        fail("thread ends while its runs may still read shared memory (missing wait)");
      if (!run.arrived) device.late.push_back(std::move(run));
    }
  }
  hopper.runs.erase(found);
}

// ---- flags

int load_acquire(const int* flag) {
  std::vector<FlagValue>& values = values_of(flag, "ld.acquire");
  Poll& poll = hopper.polls[machine.current->id];
  const auto pick = [&] {
    if (config.seed == 0 || config.naive) return values.size() - 1;
    size_t oldest = values.size() - 1;
    while (oldest > 0 && !knows(values[oldest])) --oldest;
    if (poll.flag == flag) oldest = std::max(oldest, poll.value);
    return oldest + machine.random() % (values.size() - oldest);
  };
  size_t value = pick();
  if (poll.flag != flag || poll.value != value) {
    poll = {flag, value, 0};
  } else {  // the same again: others first
    hopper.pollers.push_back(machine.current->id);
    sleep("ld.acquire");
    if (poll.idle > kIdlePolls) {
      fail("ld.acquire: a flag stays at " + std::to_string(*flag) +
           ": nobody in this block sets it, and the blocks that are left run after this one");
    }
    value = pick();
    if (value != poll.value) poll = {flag, value, 0};
  }
  const int release = values[value].release;
  if (release == kNoRelease) return values[value].value;
  const Release& r = device.releases[static_cast<size_t>(release)];
  if (r.block == block_index.x) {
    machine.warp().clock.join(r.clock);
  } else if (std::none_of(hopper.acquired.begin(), hopper.acquired.end(), [&](const Acquired& a) {
               return a.release == release && a.when.warp == me();
             })) {
    hopper.acquired.push_back({release, {me(), now()}, {}});
  }
  return values[value].value;
}

void store_release(int* flag, int value) {
  std::vector<FlagValue>& values = values_of(flag, "st.release");
  Release release = {block_index.x, me(), machine.warp().clock, {}};
  for (const Acquired& a : hopper.acquired)
    if (synchronised(a.when)) release.seen.push_back(a.release);
  ++machine.warp().clock.at[me()];
  values.push_back({value, static_cast<int>(device.releases.size())});
  device.releases.push_back(std::move(release));
  *flag = value;
  wake_pollers();
}

void fence_async_global() {
  for (Acquired& a : hopper.acquired)
    if (synchronised(a.when)) a.fences.push_back({me(), now()});
}

bool wake_idle_pollers() {
  if (hopper.pollers.empty()) return false;
  for (const int id : hopper.pollers) ++hopper.polls[id].idle;
  wake_pollers();
  return true;
}

}  // namespace simt
