// The bridge from MindSpore's ahead-of-time Custom operators to the C contract: with call.h the
// only code that knows both conventions.
//
// MindSpore looks up four symbols per operator X in the library:
//
//   XInferShape, XInferType  called while a graph is compiled: shapes and types of the outputs.
//                            A size of -1 is not known yet; the shape {-2}: not even the rank.
//   XInit                    called once per new (attributes, shapes, types). Its kernel data may
//                            serve several operators at once: it is only read later, and nothing
//                            in it comes from shapes, which may still be -1 here.
//   X                        runs, on arrays over all operands, inputs first. Every tensor is
//                            contiguous; an empty one may be null.
//
//   operator           inputs                                       outputs
//   AlibiAttentionFwd  q k v [slopes] [spans] [key_norms]           out lse
//   AlibiAttentionBwd  q k v [slopes] [spans] out lse dout dlse     dq dk dv [dslopes]
//   AlibiWeightsFwd    q k [slopes] [spans]                         p
//   AlibiWeightsBwd    q k [slopes] [spans] p dp                    dq dk [dslopes]
//   AlibiPackedFwd     packed [slopes] [spans]                      out lse
//   AlibiPackedBwd     packed [slopes] [spans] out lse dout dlse    dpacked [dslopes]
//
// Attributes: causal, prune, has_spans (bool); bias, input_layout (string); scale (float; absent:
// head_dim^-0.5); order (string; packed only); slopes (list of floats; absent: an operand);
// fixed_slopes (bool; absent: false; true: the slopes operand is a constant, and has no gradient);
// has_key_norms (bool; absent: false; a backward has no use for them).
// An attribute lies in host memory, so a library whose kernels read device memory takes fixed slopes
// as such a constant. packed is [B, S, 3, H, D].
//
// A failure is thrown: the text of an exception reaches Python whole, a return code would not.
#include "call.h"

namespace {

using alibi::aot::Call;
using alibi::aot::init;
using alibi::aot::Shape;
using Shapes = std::vector<Shape>;
using Types = std::vector<int>;

constexpr int64_t kUnknownRank = -2;
constexpr int kFloat32TypeId = 43;  // MindSpore's number for float32

void take_backward_rows(Call* call, AlibiAttentionBwdArgs* args) {
  args->out = call->take_rows("out");
  args->lse = call->take_row_floats("lse");
  args->dout = call->take_rows("dout");
  args->dlse = call->take_row_floats("dlse");
}

// ---- Shape and type inference.

bool slopes_are_trained(AotExtra* extra) {
  return !extra->HasAttr("slopes") && !alibi::aot::has_fixed_slopes(extra);
}
bool heads_first(AotExtra* extra) { return extra->get_string("input_layout") == "BNSD"; }

// The shapes of the first `count` inputs, which is what the gradients look like.
Shapes first_shapes(int count, const int* ranks, int64_t** shapes) {
  Shapes result;
  for (int i = 0; i < count; ++i) result.emplace_back(shapes[i], shapes[i] + ranks[i]);
  return result;
}

bool unknown_rank(const Shape& shape) { return shape.size() == 1 && shape[0] == kUnknownRank; }

}  // namespace

extern "C" {

// ---- alibi_attention

ALIBI_EXPORT int AlibiAttentionFwd(int count, void** data, int* ranks, int64_t** shapes,
                                   const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention", count, data, ranks, shapes, dtypes, extra);
  AlibiAttentionFwdArgs args{};
  call.take_q_and_k(&args);
  args.v = call.take_keys("v");
  call.take_slopes_and_spans(&args);
  args.key_norms = call.take_key_norms();
  args.out = call.take_rows("out");
  args.lse = call.take_row_floats("lse");
  return call.finish(alibi_attention_fwd(&args, stream));
}
ALIBI_EXPORT int AlibiAttentionFwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiAttentionFwdInferShape(int* ranks, int64_t** shapes, AotExtra* extra) {
  Shape q(shapes[0], shapes[0] + ranks[0]);
  if (unknown_rank(q)) return {q, q};
  return {q, heads_first(extra) ? Shape{q[0], q[1], q[2]} : Shape{q[0], q[2], q[1]}};
}
ALIBI_EXPORT Types AlibiAttentionFwdInferType(Types types, AotExtra*) {
  return {types[0], kFloat32TypeId};
}

ALIBI_EXPORT int AlibiAttentionBwd(int count, void** data, int* ranks, int64_t** shapes,
                                   const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention (gradient)", count, data, ranks, shapes, dtypes, extra);
  AlibiAttentionBwdArgs args{};
  call.take_q_and_k(&args);
  args.v = call.take_keys("v");
  call.take_slopes_and_spans(&args);
  take_backward_rows(&call, &args);
  args.dq = call.take_rows("dq");
  args.dk = call.take_keys("dk");
  args.dv = call.take_keys("dv");
  args.dslopes = call.take_slope_gradient();
  return call.finish(alibi_attention_bwd(&args, stream));
}
ALIBI_EXPORT int AlibiAttentionBwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiAttentionBwdInferShape(int* ranks, int64_t** shapes, AotExtra* extra) {
  return first_shapes(3 + slopes_are_trained(extra), ranks, shapes);
}
ALIBI_EXPORT Types AlibiAttentionBwdInferType(Types types, AotExtra* extra) {
  types.resize(3 + slopes_are_trained(extra));
  return types;
}

// ---- alibi_attention_weights

ALIBI_EXPORT int AlibiWeightsFwd(int count, void** data, int* ranks, int64_t** shapes,
                                 const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention_weights", count, data, ranks, shapes, dtypes, extra);
  AlibiWeightsFwdArgs args{};
  call.take_q_and_k(&args);
  call.take_slopes_and_spans(&args);
  args.p = call.take_weights("p");
  return call.finish(alibi_attention_weights_fwd(&args, stream));
}
ALIBI_EXPORT int AlibiWeightsFwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiWeightsFwdInferShape(int* ranks, int64_t** shapes, AotExtra* extra) {
  Shape q(shapes[0], shapes[0] + ranks[0]), k(shapes[1], shapes[1] + ranks[1]);
  if (unknown_rank(q) || unknown_rank(k)) return {{kUnknownRank}};
  const int heads = heads_first(extra) ? 1 : 2, length = 3 - heads;
  return {{q[0], q[heads], q[length], k[length]}};
}
ALIBI_EXPORT Types AlibiWeightsFwdInferType(Types types, AotExtra*) { return {types[0]}; }

ALIBI_EXPORT int AlibiWeightsBwd(int count, void** data, int* ranks, int64_t** shapes,
                                 const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention_weights (gradient)", count, data, ranks, shapes, dtypes, extra);
  AlibiWeightsBwdArgs args{};
  call.take_q_and_k(&args);
  call.take_slopes_and_spans(&args);
  args.p = call.take_weights("p");
  args.dp = call.take_weights("dp");
  args.dq = call.take_rows("dq");
  args.dk = call.take_keys("dk");
  args.dslopes = call.take_slope_gradient();
  return call.finish(alibi_attention_weights_bwd(&args, stream));
}
ALIBI_EXPORT int AlibiWeightsBwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiWeightsBwdInferShape(int* ranks, int64_t** shapes, AotExtra* extra) {
  return first_shapes(2 + slopes_are_trained(extra), ranks, shapes);
}
ALIBI_EXPORT Types AlibiWeightsBwdInferType(Types types, AotExtra* extra) {
  types.resize(2 + slopes_are_trained(extra));
  return types;
}

// ---- alibi_attention_packed: the same kernels; only the strides differ

ALIBI_EXPORT int AlibiPackedFwd(int count, void** data, int* ranks, int64_t** shapes,
                                const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention_packed", count, data, ranks, shapes, dtypes, extra);
  AlibiAttentionFwdArgs args{};
  call.take_packed(&args);
  call.take_slopes_and_spans(&args);
  args.out = call.take_rows("out");
  args.lse = call.take_row_floats("lse");
  return call.finish(alibi_attention_fwd(&args, stream));
}
ALIBI_EXPORT int AlibiPackedFwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiPackedFwdInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  Shape packed(shapes[0], shapes[0] + ranks[0]);
  if (unknown_rank(packed)) return {packed, packed};
  return {{packed[0], packed[1], packed[3], packed[4]}, {packed[0], packed[3], packed[1]}};
}
ALIBI_EXPORT Types AlibiPackedFwdInferType(Types types, AotExtra*) {
  return {types[0], kFloat32TypeId};
}

ALIBI_EXPORT int AlibiPackedBwd(int count, void** data, int* ranks, int64_t** shapes,
                                const char** dtypes, void* stream, void* extra) {
  Call call("alibi_attention_packed (gradient)", count, data, ranks, shapes, dtypes, extra);
  AlibiAttentionBwdArgs args{};
  call.take_packed(&args);
  call.take_slopes_and_spans(&args);
  take_backward_rows(&call, &args);
  call.take_packed_gradient(&args);
  args.dslopes = call.take_slope_gradient();
  return call.finish(alibi_attention_bwd(&args, stream));
}
ALIBI_EXPORT int AlibiPackedBwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  return init(extra);
}
ALIBI_EXPORT Shapes AlibiPackedBwdInferShape(int* ranks, int64_t** shapes, AotExtra* extra) {
  return first_shapes(1 + slopes_are_trained(extra), ranks, shapes);
}
ALIBI_EXPORT Types AlibiPackedBwdInferType(Types types, AotExtra* extra) {
  types.resize(1 + slopes_are_trained(extra));
  return types;
}

}  // extern "C"
