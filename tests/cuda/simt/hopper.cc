// Barriers, copies and registers of a Hopper multiprocessor. Its products are in products.cc.
#include "hopper.h"

namespace simt {

Hopper hopper;

namespace {
constexpr int kRegisterFile = 65536;
constexpr int kRowBytes = 128;  // of a box: 64 columns of 16 bits

void wake_all(std::vector<int>& waiters) {
  for (const int id : waiters) wake(id);
  waiters.clear();
}
}  // namespace

void reset_hopper(int threads) {
  hopper = Hopper();
  const size_t warps = static_cast<size_t>((threads + 31) / 32);
  const int each = std::min(255, kRegisterFile / threads) / 8 * 8;
  hopper.products.resize(warps);
  hopper.registers.assign(warps, each);
  hopper.free_registers =
      0;  // a block moves what it started with; the rest of the file is not its own
}

std::string hopper_complaint() {
  if (!machine.in_flight.empty()) return "the block ends while copies are in flight";
  for (size_t w = 0; w < hopper.products.size(); ++w) {
    const Products& products = hopper.products[w];
    if (!products.open.empty() || !products.groups.empty())
      return "a warp ends with products that it never waited for";
    if (products.history != hopper.products[w / 4 * 4].history)
      return "divergence: the four warps of a warpgroup started different products";
  }
  for (const NamedBarrier& barrier : hopper.named) {
    if (!barrier.arrived.empty()) return "the block ends with arrivals at a named barrier";
  }
  return "";
}

// ---- mbarriers

Mbarrier& mbarrier_at(uint32_t address, const char* what) {
  shared_at(address, 8, 8, what);
  const auto found = hopper.barriers.find(address);
  if (found == hopper.barriers.end()) fail(std::string(what) + ": the mbarrier is not initialised");
  Mbarrier& m = found->second;
  if (machine.warp_index() != m.init_warp && machine.warp().clock.at[m.init_warp] < m.init_time) {
    fail(std::string("RACE: ") + what +
         ": the mbarrier was initialised by another warp, no barrier since");
  }
  return m;
}

void mbarrier_init(uint32_t address, int arrivals) {
  shared_at(address, 8, 8, "mbarrier.init");
  if (hopper.barriers.count(address) != 0) fail("mbarrier.init: the mbarrier is in use");
  const int agent = kMaxWarps + static_cast<int>(hopper.barriers.size());
  if (agent >= kMaxAgents) fail("mbarrier.init: more mbarriers than the model has agents");
  Mbarrier& m = hopper.barriers[address];
  m.arrivals = m.missing = arrivals;
  m.agent = agent;
  m.init_warp = machine.warp_index();
  m.init_time = machine.warp().clock.at[m.init_warp];
}

void mbarrier_fence() {
  for (auto& [address, m] : hopper.barriers) {
    if (m.init_warp == machine.warp_index()) m.fenced = true;
  }
}

namespace {
void end_phase_if_complete(Mbarrier& m) {
  if (m.missing > 0 || m.bytes != 0) return;
  ++m.phases;
  m.missing = m.arrivals;
  m.ended = m.arrived;
  wake_all(m.waiters);
}
}  // namespace

void mbarrier_arrive(uint32_t address, int64_t bytes, const char* what) {
  Mbarrier& m = mbarrier_at(address, what);
  if (m.missing == 0) fail(std::string(what) + ": more arrivals than the mbarrier counts");
  m.bytes += bytes;
  m.arrived.join(machine.warp().clock);
  ++machine.warp().clock.at[machine.warp_index()];
  --m.missing;
  end_phase_if_complete(m);
}

void mbarrier_wait(uint32_t address, int parity) {
  if (parity != 0 && parity != 1) fail("mbarrier.wait: a parity is 0 or 1");
  Mbarrier& m = mbarrier_at(address, "mbarrier.wait");
  if (static_cast<int>(m.phases & 1) == parity) {
    m.waiters.push_back(machine.current->id);
    sleep("mbarrier.wait");
    if (static_cast<int>(m.phases & 1) == parity)
      fail("mbarrier.wait: a thread slept through the next phase, too");
  }
  machine.warp().clock.join(m.ended);
}

// ---- named barriers

void named_barrier(int id, int threads, bool wait) {
  const char* what = wait ? "bar.sync" : "bar.arrive";
  if (id < 1 || id > 15) fail(std::string(what) + ": named barriers are 1 to 15");
  if (threads <= 0 || threads % 32 != 0) fail(std::string(what) + ": bad number of threads");
  NamedBarrier& b = hopper.named[id];
  const int me = machine.current->id;
  if (!b.arrived.empty() && b.threads != threads)
    fail(std::string(what) + ": two numbers of threads at one named barrier");
  if (std::find(b.arrived.begin(), b.arrived.end(), me) != b.arrived.end())
    fail(std::string(what) + ": a thread arrives twice in one phase");
  b.threads = threads;
  b.arrived.push_back(me);
  b.clock.join(machine.warp().clock);
  ++machine.warp().clock.at[machine.warp_index()];
  if (wait) b.waiters.push_back(me);
  if (static_cast<int>(b.arrived.size()) < threads) {
    if (wait) sleep(what);
    return;
  }
  for (const int waiter : b.waiters)
    machine.warps[static_cast<size_t>(waiter / 32)].clock.join(b.clock);
  wake_all(b.waiters);
  b = NamedBarrier();
}

// ---- copy engine

namespace {
// Clears the target and lets `fill` write it some time later.
void start_copy(uint32_t target, int bytes, uint32_t barrier, const char* what,
                const std::function<void()>& fill) {
  Mbarrier* m = &mbarrier_at(barrier, what);
  if (!m->fenced) fail(std::string(what) + ": the initialisation of the mbarrier was not fenced");
  note_write(target, bytes, what, true, m->agent);
  if (!config.naive) memset(machine.shared + target, 0xff, static_cast<size_t>(bytes));
  machine.in_flight.push_back([=] {
    fill();
    note_landed(target, bytes, m->agent, ++m->agent_time);
    m->arrived.at[m->agent] = m->agent_time;
    m->bytes -= bytes;
    end_phase_if_complete(*m);
  });
  if (config.naive) {
    machine.in_flight.back()();
    machine.in_flight.pop_back();
  }
}

// The 16-byte piece (bits 4 to 6) is exchanged by the row within 1024 bytes (bits 7 to 9).
uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

uint16_t element(const CUtensorMap& map, const int64_t (&at)[4]) {
  const char* data = map.data;
  for (int i = 0; i < 4; ++i) {
    if (at[i] < 0 || static_cast<uint64_t>(at[i]) >= map.sizes[i]) return 0;
    data += at[i] * (i == 0 ? 2 : static_cast<int64_t>(map.strides[i - 1]));
  }
  uint16_t value;
  memcpy(&value, data, 2);
  return value;
}
}  // namespace

void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier, const int (&at)[4]) {
  if (map.encoded != kEncodedMap) fail("TMA: not a tensor map");
  const int bytes = static_cast<int>(map.rows) * kRowBytes;
  shared_at(target, static_cast<size_t>(bytes), 128, "TMA");
  ++stats.boxes;
  const int64_t column = at[0], row = at[1], head = at[2], batch = at[3];
  start_copy(target, bytes, barrier, "TMA", [=] {
    for (uint32_t r = 0; r < map.rows; ++r) {
      for (uint32_t x = 0; x < 64; ++x) {
        const uint16_t value = element(map, {column + x, row + r, head, batch});
        memcpy(machine.shared + swizzled(target + r * kRowBytes + x * 2), &value, 2);
      }
    }
  });
}

void copy_run(uint32_t target, const void* source, uint32_t barrier, int bytes) {
  check_run(source, target, bytes, "cp.async.bulk");
  ++stats.runs;
  start_copy(target, bytes, barrier, "cp.async.bulk",
             [=] { memcpy(machine.shared + target, source, static_cast<size_t>(bytes)); });
}

void fence_async() {
  for (const uint32_t word : machine.current->unfenced) machine.shadow[word].unfenced = false;
  machine.current->unfenced.clear();
}

// ---- registers

void set_registers(int count, bool release) {
  const char* what = release ? "setmaxnreg.dec" : "setmaxnreg.inc";
  if (count < 24 || count > 256 || count % 8 != 0) fail(std::string(what) + ": bad count");
  int& mine = hopper.registers[static_cast<size_t>(machine.warp_index())];
  collective(0xffffffffu, what, nullptr, [&](void**) {
    if (release && count > mine) fail("setmaxnreg.dec: the warp has fewer registers");
    if (!release && count < mine) fail("setmaxnreg.inc: the warp has more registers");
    if (!release) return;
    hopper.free_registers += (mine - count) * 32;
    mine = count;
    wake_all(hopper.register_waiters);
  });
  while (mine != count) {
    const int wanted = (count - mine) * 32;
    if (wanted <= hopper.free_registers) {
      hopper.free_registers -= wanted;
      mine = count;
      return;
    }
    hopper.register_waiters.push_back(machine.current->id);
    sleep(what);
  }
}

}  // namespace simt
