// The functions of csrc/cuda/sm90/device.cuh on the model.
#ifndef SIMT_HOPPER_DEVICE_H_
#define SIMT_HOPPER_DEVICE_H_

#include "device.h"
#include "hopper.h"

namespace alibi {
namespace cuda {

inline void barrier_init(uint32_t barrier, int arrivals) { simt::mbarrier_init(barrier, arrivals); }
inline void barrier_init_fence() { simt::mbarrier_fence(); }
inline void barrier_arrive(uint32_t barrier) {
  simt::mbarrier_arrive(barrier, 0, "mbarrier.arrive");
}
inline void barrier_arrive_expect(uint32_t barrier, int bytes) {
  simt::mbarrier_arrive(barrier, bytes, "mbarrier.arrive.expect_tx");
}
inline void barrier_wait(uint32_t barrier, int parity) { simt::mbarrier_wait(barrier, parity); }

inline void named_sync(int id, int threads) { simt::named_barrier(id, threads, true); }
inline void named_arrive(int id, int threads) { simt::named_barrier(id, threads, false); }

inline void prefetch_map(const CUtensorMap&) {}
inline void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier, int column, int row,
                     int head, int batch) {
  simt::copy_box(target, map, barrier, {column, row, head, batch});
}
inline void store_shared_zeros(uint32_t address) {
  memset(simt::shared_at(address, 16, 16, "st.shared.v4"), 0, 16);
  simt::note_write(address, 16, "st.shared.v4");
}
inline void store_shared(uint32_t address, uint32_t word) {
  memcpy(simt::shared_at(address, 4, 4, "st.shared"), &word, 4);
  simt::note_write(address, 4, "st.shared");
}
inline void store_shared(uint32_t address, const float (&x)[4]) {
  memcpy(simt::shared_at(address, 16, 16, "st.shared.v4"), x, 16);
  simt::note_write(address, 16, "st.shared.v4");
}
inline void fence_async_proxy() { simt::fence_async(); }

inline void copy_run(uint32_t target, const void* source, uint32_t barrier, int bytes) {
  simt::copy_run(target, source, barrier, bytes);
}
inline void store_run(void* target, uint32_t source, int bytes) {
  simt::start_run(target, source, bytes, false);
}
inline void add_run(float* target, uint32_t source, int bytes) {
  simt::start_run(target, source, bytes, true);
}
inline void runs_commit() { simt::commit_runs(); }
template <int kGroups>
void runs_wait_read() {
  simt::wait_for_runs(kGroups, true);
}
template <int kGroups>
void runs_wait() {
  simt::wait_for_runs(kGroups, false);
}

inline int load_acquire(const int* flag) { return simt::load_acquire(flag); }
inline void store_release(int* flag, int value) { simt::store_release(flag, value); }
inline void fence_async_proxy_global() { simt::fence_async_global(); }
// Blocks run one after another here. So that the first does not do everything, all but the last are
// told after a few tickets that there are no more.
inline int take_ticket(int* counter) {
  constexpr int kFew = 3, kNoMore = 1 << 30;
  static int drawn = 0, drawing = -1;
  const int block = static_cast<int>(blockIdx.x);
  if (block != drawing) drawn = 0;
  drawing = block;
  const bool last = block + 1 == static_cast<int>(gridDim.x);
  return last || drawn++ < kFew ? (*counter)++ : kNoMore;
}
inline void add_float(float* target, float x) { *target += x; }

template <int kRegisters>
void release_registers() {
  simt::set_registers(kRegisters, true);
}
template <int kRegisters>
void acquire_registers() {
  simt::set_registers(kRegisters, false);
}

inline void products_fence() { simt::product_fence(); }
inline void products_commit() { simt::product_commit(); }
template <int kGroups>
void products_wait() {
  simt::product_wait(kGroups);
}
template <int kN>
void pin_registers(float (&)[kN][4]) {}

inline uint32_t compute_anew(uint32_t address) { return address; }

inline uint64_t matrix_descriptor(uint32_t address, int leading, int stride) {
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}

template <bool kTransposedA, bool kTransposedB, class T, int kN>
void multiply_shared(float (&d)[kN][4], uint64_t a, uint64_t b, bool add, T) {
  static_assert(kN == 8 || kN == 16, "the shapes of sm90/device.cuh");
  simt::Product shape = {};
  shape.columns = 8 * kN;
  shape.transposed_a = kTransposedA;
  shape.transposed_b = kTransposedB;
  shape.bfloat16 = std::is_same<T, bfloat_t>::value;
  shape.add = add;
  simt::product(&d[0][0], nullptr, a, b, shape);
}
template <bool kTransposedB, class T, int kN>
void multiply_held(float (&d)[kN][4], const uint32_t (&a)[4], uint64_t b, bool add, T) {
  static_assert(kN == 8 || kN == 16, "the shapes of sm90/device.cuh");
  simt::Product shape = {};
  shape.columns = 8 * kN;
  shape.transposed_b = kTransposedB;
  shape.bfloat16 = std::is_same<T, bfloat_t>::value;
  shape.add = add;
  simt::product(&d[0][0], a, 0, b, shape);
}

}  // namespace cuda
}  // namespace alibi

#endif  // SIMT_HOPPER_DEVICE_H_
