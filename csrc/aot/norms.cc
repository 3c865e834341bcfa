// The bridge from MindSpore's ahead-of-time Custom operators to csrc/alibi_cache.h; the conventions
// are those of bridge.cc. Compiled into the CPU library only.
//
//   operator       inputs           outputs
//   AlibiKeyNorms  k start norms    raised
//
// k is [B, Hkv, S, D] or [B, S, Hkv, D], start [B] int32, norms [B, Hkv, blocks] float32. raised is
// norms with these keys taken in. Attribute: input_layout (string).
#include "../alibi_cache.h"
#include "call.h"

namespace {

using alibi::aot::fail;
using alibi::aot::Shape;
using alibi::aot::to_string;

constexpr char kOp[] = "key_norms";

struct NormsAttributes : AotKernelData {
  bool heads_first = false;
};

// The sizes that k, start and norms have, if these fit together.
AlibiKeyNormsArgs sizes_of(const int* ranks, int64_t** shapes, const char** dtypes,
                           bool heads_first) {
  const int64_t *k = shapes[0], *start = shapes[1], *norms = shapes[2];
  if (ranks[0] != 4) fail(kOp, "k must have 4 dimensions, got shape " + to_string(k, ranks[0]));
  AlibiKeyNormsArgs args{};
  args.batch = k[0];
  args.heads_kv = k[heads_first ? 1 : 2];
  args.len_k = k[heads_first ? 2 : 1];
  args.head_dim = k[3];
  if (ranks[1] != 1 || start[0] != args.batch) {
    fail(kOp, "start must have shape " + to_string(k, 1) + " to fit k, got " +
                  to_string(start, ranks[1]));
  }
  if (ranks[2] != 3 || norms[0] != args.batch || norms[1] != args.heads_kv) {
    const int64_t heads[] = {args.batch, args.heads_kv};
    fail(kOp, "norms must have shape " + to_string(heads, 2) + " and an axis of blocks to fit k, " +
                  "got " + to_string(norms, ranks[2]));
  }
  args.blocks = norms[2];
  for (const auto& [name, code, size] : alibi::aot::kDtypes) {
    if (std::strcmp(name, dtypes[0]) == 0) {
      args.dtype = code;
      return args;
    }
  }
  fail(kOp, std::string("k must be float32, float16 or bfloat16, got ") + dtypes[0]);
}

}  // namespace

extern "C" {

ALIBI_EXPORT int AlibiKeyNorms(int count, void** data, int* ranks, int64_t** shapes,
                               const char** dtypes, void*, void* extra) {
  if (count != 4) fail(kOp, "expected k, start, norms and a result");
  const AotKernelData* attributes = static_cast<AotExtra*>(extra)->kernel_data();
  const bool heads_first = static_cast<const NormsAttributes*>(attributes)->heads_first;
  AlibiKeyNormsArgs args = sizes_of(ranks, shapes, dtypes, heads_first);
  if (std::strcmp(dtypes[1], "int32") != 0) fail(kOp, "start must be int32");
  if (std::strcmp(dtypes[2], "float32") != 0) fail(kOp, "norms must be float32");
  const int64_t row = args.head_dim, keys = args.len_k, heads = args.heads_kv;
  args.k = {data[0], heads * keys * row, heads_first ? keys * row : row,
            heads_first ? row : heads * row};
  args.start = static_cast<const int32_t*>(data[1]);
  args.norms = static_cast<float*>(data[3]);
  const int64_t entries = args.batch * heads * args.blocks;
  if (entries > 0) std::memcpy(args.norms, data[2], sizeof(float) * static_cast<size_t>(entries));
  const int32_t status = alibi_key_norms(&args, nullptr);
  if (status == ALIBI_OK) return 0;
  fail(kOp,
       std::string("status \"") + alibi_status_name(status) + "\": " +
           (status == ALIBI_SPANS
                ? "every key must stand at a position of at least 0 that norms have a block for"
                : alibi::aot::kAdvice[status]));
}
ALIBI_EXPORT int AlibiKeyNormsInit(int*, int64_t**, const char**, AotExtra* extra) {
  auto* attributes = new NormsAttributes;
  extra->set_kernel_data(attributes);  // before anything can throw: MindSpore owns it from here
  attributes->heads_first = alibi::aot::one_of(extra, "input_layout", "BNSD", "BSND");
  return 0;
}
ALIBI_EXPORT std::vector<Shape> AlibiKeyNormsInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  return {Shape(shapes[2], shapes[2] + ranks[2])};
}
ALIBI_EXPORT std::vector<int> AlibiKeyNormsInferType(std::vector<int> types, AotExtra*) {
  return {types[2]};
}

}  // extern "C"
