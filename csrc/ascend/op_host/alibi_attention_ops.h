// What the definition, shape inference and tiling files of the ops share: their inputs and
// attributes by index.
#ifndef ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_
#define ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_

#include "register/op_def_registry.h"

namespace alibi {
namespace ascend {

// Inputs that all ops begin with, and those that both directions of the fused op begin with.
enum CommonInput { kQuery, kKey };
enum FusedInput { kValue = kKey + 1, kSlopes, kFusedInputs };
// The rest of each op's inputs. kAbsent: an op has no such input.
enum ForwardInput { kForwardSpans = kFusedInputs, kForwardReach };
enum BackwardInput { kLse = kFusedInputs, kDelta, kOutGrad, kBackwardSpans, kBackwardReach };
enum WeightsInput { kWeightsSlopes = kKey + 1, kWeightsSpans };
enum WeightsGradInput { kWeights = kKey + 1, kWeightsGrad, kWeightsGradSpans };
constexpr int kAbsent = -1;
// Attributes of every op.
enum Attribute { kScale, kCausal, kSymmetric, kSequenceFirst };

ge::graphStatus infer_forward_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_forward_types(gert::InferDataTypeContext* context);
ge::graphStatus infer_backward_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_backward_types(gert::InferDataTypeContext* context);
ge::graphStatus infer_weights_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_weights_types(gert::InferDataTypeContext* context);
ge::graphStatus infer_weights_grad_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_weights_grad_types(gert::InferDataTypeContext* context);
ge::graphStatus tile_forward(gert::TilingContext* context);
ge::graphStatus tile_backward(gert::TilingContext* context);
ge::graphStatus tile_weights(gert::TilingContext* context);
ge::graphStatus tile_weights_grad(gert::TilingContext* context);

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_
