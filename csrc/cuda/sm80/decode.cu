// Launches of the decoding kernel.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "decode.cuh"

namespace alibi {
namespace cuda {
namespace {

// Blocks for the whole of the keys.
int64_t decode_blocks(const ProblemView& problem) {
  const int rows = problem.heads_q / problem.heads_kv * problem.len_q;
  return int64_t{problem.batch} * problem.heads_kv * ceil_div(rows, kDecodeRows);
}

// As dispatch(), for the head sizes that have a row.
template <class Run>
bool dispatch_decode(const Call& call, int32_t dtype, const ProblemView& problem, const Run& run) {
  return dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
    if constexpr (decltype(dim)::value <= kDecodeHeadDim) run(type, dim, gpu);
  });
}

}  // namespace

bool decode_takes(const ProblemView& problem) {
  return is_decode(problem.len_q) && problem.head_dim <= kDecodeHeadDim && problem.heads_kv > 0;
}

int decode_splits(const Call& call, int32_t dtype, const ProblemView& problem) {
  int splits = 1;
  dispatch_decode(call, dtype, problem, [&](auto type, auto dim, auto gpu) {
    constexpr DecodeTile kTile =
        kDecodeTile<decltype(type), decltype(dim)::value, decltype(gpu)::value>;
    constexpr int kReserved = 1024;  // bytes that the system takes of every block's shared memory
    const int fit = (call.shared_limit() + kReserved) / (kTile.shared_bytes() + kReserved);
    const int slots = call.multiprocessors() * most(1, least(fit, kTile.resident));
    const int steps = ceil_div(problem.len_k, kTile.keys * kTile.warps);
    splits = choose_decode_splits(decode_blocks(problem), steps, slots);
  });
  return splits;
}

void run_decode(Call& call, int32_t dtype, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const bool found = dispatch_decode(call, dtype, problem, [&](auto type, auto dim, auto gpu) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    constexpr DecodeTile kTile = kDecodeTile<T, D, decltype(gpu)::value>;
    constexpr int kShared = DecodeMemory<T, D, kTile.gpu>::kBytes;
    static_assert(kShared == kTile.shared_bytes(), "the table tells how many blocks fit");
    static_assert(kShared <= shared_limit(decltype(gpu)::value), "a block has less");
    call.launch(attention_decode<T, D, kTile.gpu>, decode_blocks(problem) * params.splits,
                kTile.threads(), kShared, params);
    if (params.splits > 1) run_combine(call, dtype, params);
  });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

}  // namespace cuda
}  // namespace alibi
