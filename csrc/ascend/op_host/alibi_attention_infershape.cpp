// Output shapes and types of the ops.
#include "alibi_attention_ops.h"

namespace alibi {
namespace ascend {
namespace {

// [B, Hq, Sq] of a query tensor in either layout.
ge::graphStatus row_shape(const gert::Shape& query, bool sequence_first, gert::Shape* rows) {
  if (query.GetDimNum() != 4) return ge::GRAPH_FAILED;
  rows->SetDimNum(3);
  rows->SetDim(0, query.GetDim(0));
  rows->SetDim(1, query.GetDim(sequence_first ? 2 : 1));
  rows->SetDim(2, query.GetDim(sequence_first ? 1 : 2));
  return ge::GRAPH_SUCCESS;
}

// Outputs 0 .. copies-1 are shaped like the inputs of the same index, output `copies` has one float
// per query row.
ge::graphStatus infer_shapes(gert::InferShapeContext* context, int copies) {
  for (int i = 0; i < copies; ++i) {
    const gert::Shape* input = context->GetInputShape(kQuery + i);
    gert::Shape* output = context->GetOutputShape(i);
    if (input == nullptr || output == nullptr) return ge::GRAPH_FAILED;
    *output = *input;
  }
  const gert::RuntimeAttrs* attributes = context->GetAttrs();
  gert::Shape* rows = context->GetOutputShape(copies);
  if (attributes == nullptr || rows == nullptr) return ge::GRAPH_FAILED;
  const bool* sequence_first = attributes->GetAttrPointer<bool>(kSequenceFirst);
  if (sequence_first == nullptr) return ge::GRAPH_FAILED;
  return row_shape(*context->GetInputShape(kQuery), *sequence_first, rows);
}

ge::graphStatus infer_types(gert::InferDataTypeContext* context, int copies) {
  for (int i = 0; i < copies; ++i) context->SetOutputDataType(i, context->GetInputDataType(kQuery));
  context->SetOutputDataType(copies, ge::DT_FLOAT);
  return ge::GRAPH_SUCCESS;
}

constexpr int kForwardCopies = 1;      // out
constexpr int kBackwardCopies = 3;     // dq, dk, dv
constexpr int kWeightsGradCopies = 2;  // dq, dk

}  // namespace

ge::graphStatus infer_forward_shapes(gert::InferShapeContext* context) {
  return infer_shapes(context, kForwardCopies);
}
ge::graphStatus infer_forward_types(gert::InferDataTypeContext* context) {
  return infer_types(context, kForwardCopies);
}
ge::graphStatus infer_backward_shapes(gert::InferShapeContext* context) {
  return infer_shapes(context, kBackwardCopies);
}
ge::graphStatus infer_backward_types(gert::InferDataTypeContext* context) {
  return infer_types(context, kBackwardCopies);
}

// p [B, Hq, Sq, Sk].
ge::graphStatus infer_weights_shapes(gert::InferShapeContext* context) {
  const gert::Shape *query = context->GetInputShape(kQuery), *key = context->GetInputShape(kKey);
  const gert::RuntimeAttrs* attributes = context->GetAttrs();
  gert::Shape* weights = context->GetOutputShape(0);
  if (query == nullptr || key == nullptr || attributes == nullptr || weights == nullptr)
    return ge::GRAPH_FAILED;
  const bool* sequence_first = attributes->GetAttrPointer<bool>(kSequenceFirst);
  if (sequence_first == nullptr || key->GetDimNum() != 4) return ge::GRAPH_FAILED;
  if (row_shape(*query, *sequence_first, weights) != ge::GRAPH_SUCCESS) return ge::GRAPH_FAILED;
  weights->SetDimNum(4);
  weights->SetDim(3, key->GetDim(*sequence_first ? 1 : 2));
  return ge::GRAPH_SUCCESS;
}
ge::graphStatus infer_weights_types(gert::InferDataTypeContext* context) {
  context->SetOutputDataType(0, context->GetInputDataType(kQuery));
  return ge::GRAPH_SUCCESS;
}
ge::graphStatus infer_weights_grad_shapes(gert::InferShapeContext* context) {
  return infer_shapes(context, kWeightsGradCopies);
}
ge::graphStatus infer_weights_grad_types(gert::InferDataTypeContext* context) {
  return infer_types(context, kWeightsGradCopies);
}

}  // namespace ascend
}  // namespace alibi
