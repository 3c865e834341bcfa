// The ops AlibiAttention and AlibiAttentionWeights and their gradients: inputs, outputs, attributes,
// supported devices.
#include "alibi_attention_ops.h"

namespace ops {
namespace {

const std::vector<ge::DataType> kWorking = {ge::DT_FLOAT16, ge::DT_BF16};
const std::vector<ge::DataType> kFloats = {ge::DT_FLOAT, ge::DT_FLOAT};
const std::vector<ge::DataType> kIntegers = {ge::DT_INT32, ge::DT_INT32};
const std::vector<ge::Format> kPlain = {ge::FORMAT_ND, ge::FORMAT_ND};
constexpr const char* kDevice = "ascend910b";  // Atlas A2

}  // namespace

class AlibiAttention : public OpDef {
 public:
  explicit AlibiAttention(const char* name) : OpDef(name) {
    for (const char* input : {"q", "k", "v"})
      Input(input).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Input("slopes").ParamType(REQUIRED).DataType(kFloats).Format(kPlain);   // [Hq]
    Input("spans").ParamType(OPTIONAL).DataType(kIntegers).Format(kPlain);  // [B, 3]
    Input("reach").ParamType(OPTIONAL).DataType(kIntegers).Format(
        kPlain);                                                          // [B, Hq, ceil(Sq / 128)]
    Output("out").ParamType(REQUIRED).DataType(kWorking).Format(kPlain);  // like q
    Output("lse").ParamType(REQUIRED).DataType(kFloats).Format(kPlain);   // [B, Hq, Sq]
    Attr("scale").AttrType(REQUIRED).Float();
    Attr("causal").AttrType(OPTIONAL).Bool(true);
    Attr("symmetric").AttrType(OPTIONAL).Bool(true);
    Attr("sequence_first").AttrType(OPTIONAL).Bool(false);
    SetInferShape(alibi::ascend::infer_forward_shapes)
        .SetInferDataType(alibi::ascend::infer_forward_types);
    AICore().SetTiling(alibi::ascend::tile_forward).AddConfig(kDevice);
  }
};
OP_ADD(AlibiAttention);

class AlibiAttentionGrad : public OpDef {
 public:
  explicit AlibiAttentionGrad(const char* name) : OpDef(name) {
    for (const char* input : {"q", "k", "v"})
      Input(input).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    for (const char* input : {"slopes", "lse", "delta"})
      Input(input).ParamType(REQUIRED).DataType(kFloats).Format(kPlain);
    Input("dout").ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Input("spans").ParamType(OPTIONAL).DataType(kIntegers).Format(kPlain);
    Input("reach").ParamType(OPTIONAL).DataType(kIntegers).Format(kPlain);
    for (const char* output : {"dq", "dk", "dv"})
      Output(output).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Output("dslopes").ParamType(REQUIRED).DataType(kFloats).Format(
        kPlain);  // [B, Hq, Sq], to be summed over B and Sq
    Attr("scale").AttrType(REQUIRED).Float();
    Attr("causal").AttrType(OPTIONAL).Bool(true);
    Attr("symmetric").AttrType(OPTIONAL).Bool(true);
    Attr("sequence_first").AttrType(OPTIONAL).Bool(false);
    SetInferShape(alibi::ascend::infer_backward_shapes)
        .SetInferDataType(alibi::ascend::infer_backward_types);
    AICore().SetTiling(alibi::ascend::tile_backward).AddConfig(kDevice);
  }
};
OP_ADD(AlibiAttentionGrad);

class AlibiAttentionWeights : public OpDef {
 public:
  explicit AlibiAttentionWeights(const char* name) : OpDef(name) {
    for (const char* input : {"q", "k"})
      Input(input).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Input("slopes").ParamType(REQUIRED).DataType(kFloats).Format(kPlain);   // [Hq]
    Input("spans").ParamType(OPTIONAL).DataType(kIntegers).Format(kPlain);  // [B, 3]
    Output("p").ParamType(REQUIRED).DataType(kWorking).Format(kPlain);      // [B, Hq, Sq, Sk]
    Attr("scale").AttrType(REQUIRED).Float();
    Attr("causal").AttrType(OPTIONAL).Bool(true);
    Attr("symmetric").AttrType(OPTIONAL).Bool(true);
    Attr("sequence_first").AttrType(OPTIONAL).Bool(false);
    SetInferShape(alibi::ascend::infer_weights_shapes)
        .SetInferDataType(alibi::ascend::infer_weights_types);
    AICore().SetTiling(alibi::ascend::tile_weights).AddConfig(kDevice);
  }
};
OP_ADD(AlibiAttentionWeights);

// The slopes are no input: p holds all that the gradient needs of them.
class AlibiAttentionWeightsGrad : public OpDef {
 public:
  explicit AlibiAttentionWeightsGrad(const char* name) : OpDef(name) {
    for (const char* input : {"q", "k", "p", "dp"})  // p, dp: [B, Hq, Sq, Sk]
      Input(input).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Input("spans").ParamType(OPTIONAL).DataType(kIntegers).Format(kPlain);
    for (const char* output : {"dq", "dk"})
      Output(output).ParamType(REQUIRED).DataType(kWorking).Format(kPlain);
    Output("dslopes").ParamType(REQUIRED).DataType(kFloats).Format(
        kPlain);  // [B, Hq, Sq], to be summed over B and Sq
    Attr("scale").AttrType(REQUIRED).Float();
    Attr("causal").AttrType(OPTIONAL).Bool(true);
    Attr("symmetric").AttrType(OPTIONAL).Bool(true);
    Attr("sequence_first").AttrType(OPTIONAL).Bool(false);
    SetInferShape(alibi::ascend::infer_weights_grad_shapes)
        .SetInferDataType(alibi::ascend::infer_weights_grad_types);
    AICore().SetTiling(alibi::ascend::tile_weights_grad).AddConfig(kDevice);
  }
};
OP_ADD(AlibiAttentionWeightsGrad);

}  // namespace ops
