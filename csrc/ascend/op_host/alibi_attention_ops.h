// What the definition, shape inference and tiling files of the two ops share: their inputs and
// attributes by index.
#ifndef ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_
#define ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_

#include "register/op_def_registry.h"

namespace alibi {
namespace ascend {

// Inputs that both ops begin with.
enum CommonInput { kQuery, kKey, kValue, kSlopes, kCommonInputs };
// The rest of each op's inputs.
enum ForwardInput { kForwardSpans = kCommonInputs, kForwardReach };
enum BackwardInput { kLse = kCommonInputs, kDelta, kOutGrad, kBackwardSpans, kBackwardReach };
// Attributes of both ops.
enum Attribute { kScale, kCausal, kSymmetric, kSequenceFirst };

ge::graphStatus infer_forward_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_forward_types(gert::InferDataTypeContext* context);
ge::graphStatus infer_backward_shapes(gert::InferShapeContext* context);
ge::graphStatus infer_backward_types(gert::InferDataTypeContext* context);
ge::graphStatus tile_forward(gert::TilingContext* context);
ge::graphStatus tile_backward(gert::TilingContext* context);

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_HOST_ALIBI_ATTENTION_OPS_H_
