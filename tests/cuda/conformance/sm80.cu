// One probe for every instruction of csrc/cuda/sm80/device.cuh, and for the CUDA built-ins that the
// portable kernels call. Compiled with nvcc for a GPU, and with g++ for the CPU model.
#include "probe.h"

#ifndef ALIBI_CPU_MODEL
#include "cuda/sm80/device.cuh"
#endif

using namespace alibi::cuda;
using namespace conformance;

namespace {

// Words of this thread.
struct Lane {
  const uint32_t* in;
  uint32_t* out;
  int threads = static_cast<int>(blockDim.x), id = static_cast<int>(threadIdx.x), count = 0;

  __device__ Lane(const uint32_t* source, uint32_t* target) : in(source), out(target) {}
  __device__ uint32_t get(int i) const { return in[i * threads + id]; }
  __device__ float get_float(int i) const { return __uint_as_float(get(i)); }
  __device__ void put(uint32_t word) { out[count++ * threads + id] = word; }
  __device__ void put(float x) { put(__float_as_uint(x)); }
};

__global__ void shuffles(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t x = lane.get(0);
  for (int mask = 1; mask < 32; mask *= 2) lane.put(__shfl_xor_sync(kAllLanes, x, mask));
  lane.put(__shfl_sync(kAllLanes, x, 0));
  lane.put(__shfl_sync(kAllLanes, x, static_cast<int>(x % 32)));
  lane.put(__shfl_sync(kAllLanes, x, 3, 4));
  lane.put(__shfl_sync(kAllLanes, lane.get_float(0), 2, 4));
}

__global__ void votes(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const bool warp = lane.id / 32 != 1 || lane.id % 32 != 7;  // one lane of the second warp objects
  lane.put(static_cast<uint32_t>(__all_sync(kAllLanes, warp)));
  lane.put(static_cast<uint32_t>(__syncthreads_and(warp)));
  lane.put(static_cast<uint32_t>(__syncthreads_and(lane.get(0) != 1)));
}

// The largest of non-negative floats, as integers.
__global__ void atomic_maximum(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  if (lane.id == 0) out[0] = 0;
  __syncthreads();
  atomicMax(reinterpret_cast<int*>(out), static_cast<int>(lane.get(0) & 0x7fffffff));
  __syncthreads();
  if (lane.id != 0) lane.put(0u);
}

// Words that another lane has stored, ordered by the barrier of the warp alone.
__global__ void warp_barrier(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t base = shared_base();
  store_shared(base + static_cast<uint32_t>(lane.id) * 4, lane.get_float(0));
  __syncwarp();
  float x;
  load_shared(x, base + static_cast<uint32_t>(lane.id ^ 21) * 4);
  lane.put(x);
}

// Two groups of copies of 0 to 16 bytes over shared memory that holds something else.
__global__ void async_copies(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t base = shared_base();
  for (int i = 0; i < 8; ++i)
    store_shared(base + static_cast<uint32_t>(i * 32 + lane.id) * 4, __uint_as_float(0x40490fdbu));
  __syncthreads();
  for (int group = 0; group < 2; ++group) {
    const int piece = group * 32 + lane.id;
    copy_async(base + static_cast<uint32_t>(piece) * 16, in + piece * 4, 2 * (piece % 9));
    copy_commit();
  }
  copy_wait<1>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    float x;
    load_shared(x, base + static_cast<uint32_t>(i * 32 + lane.id) * 4);
    lane.put(x);
  }
  copy_wait<0>();
  __syncthreads();
  for (int i = 4; i < 8; ++i) {
    float x;
    load_shared(x, base + static_cast<uint32_t>(i * 32 + lane.id) * 4);
    lane.put(x);
  }
}

__global__ void shared_vectors(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t base = shared_base();
  for (int i = 0; i < 4; ++i)
    store_shared(base + static_cast<uint32_t>(i * 32 + lane.id) * 4, lane.get_float(i));
  __syncthreads();
  float two[2], four[4];
  load_shared(two, base + static_cast<uint32_t>(lane.id ^ 1) * 8);
  load_shared(four, base + static_cast<uint32_t>(lane.id ^ 3) * 16);
  lane.put(two[0]);
  lane.put(two[1]);
  for (int i = 0; i < 4; ++i) lane.put(four[i]);
}

// Rows of 16 bytes, named by the lanes in an order of their own.
template <bool kTransposed>
__global__ void matrices(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t base = shared_base();
  copy_async(base + static_cast<uint32_t>(lane.id) * 16, in + lane.id * 4, 16);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  uint32_t r[4];
  load_matrices<kTransposed>(r, base + static_cast<uint32_t>(lane.id ^ 13) * 16);
  for (int i = 0; i < 4; ++i) lane.put(r[i]);
}

template <class T>
__global__ void product(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t a[4] = {lane.get(0), lane.get(1), lane.get(2), lane.get(3)};
  float c[4] = {1.0f, -2.0f, 3.0f, static_cast<float>(lane.id)};
  multiply_16816(c, a, lane.get(4), lane.get(5), T{});
  for (int i = 0; i < 4; ++i) lane.put(c[i]);
}

template <class T>
__global__ void rounding(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  const uint32_t pair = pack<T>(lane.get_float(0), lane.get_float(1));
  lane.put(pair);
  const float2 back = unpack<T>(pair);
  lane.put(back.x);
  lane.put(back.y);
  T one;
  from_float(one, lane.get_float(1));
  lane.put(to_float(one));
}

__global__ void powers_of_two(const uint32_t* in, uint32_t* out) {
  Lane lane(in, out);
  for (int i = 0; i < 8; ++i) lane.put(exp2_fast(lane.get_float(i)));
}

constexpr Probe kProbes[] = {
    {"shuffles", shuffles, kWords, kExact, 32, 0, 1, 9},
    {"votes", votes, kWords, kExact, 96, 0, 1, 3},
    {"atomic_maximum", atomic_maximum, kWords, kExact, 64, 0, 1, 1},
    {"warp_barrier", warp_barrier, kWords, kExact, 64, 256, 1, 1},
    {"async_copies", async_copies, kWords, kExact, 32, 1024, 8, 8},
    {"shared_vectors", shared_vectors, kWords, kExact, 32, 512, 4, 6},
    {"matrices", matrices<false>, kWords, kExact, 32, 512, 4, 4},
    {"matrices_transposed", matrices<true>, kWords, kExact, 32, 512, 4, 4},
    {"product_float16_exact", product<half_t>, kHalfIntegers, kExact, 32, 0, 6, 4},
    {"product_float16", product<half_t>, kHalves, kSum, 32, 0, 6, 4},
    {"rounding_float16", rounding<half_t>, kFloats, kExact, 32, 0, 2, 4},
    {"rounding_bfloat16", rounding<bfloat_t>, kFloats, kExact, 32, 0, 2, 4},
    {"powers_of_two", powers_of_two, kExponents, kRelative, 32, 0, 8, 8},
#ifndef ALIBI_NO_BFLOAT16  // sm_75 has no products of them
    {"product_bfloat16_exact", product<bfloat_t>, kBfloatIntegers, kExact, 32, 0, 6, 4},
    {"product_bfloat16", product<bfloat_t>, kBfloats, kSum, 32, 0, 6, 4},
#endif
};

}  // namespace

int main(int count, char** arguments) { return run_all(kProbes, count, arguments); }
