// The bridge from MindSpore's ahead-of-time Custom operators to csrc/alibi_layer.h; the conventions
// are those of bridge.cc. Compiled into the CPU library only.
//
//   operator           inputs                       outputs
//   AlibiLayerNormFwd  x gamma beta                 y mean rstd
//   AlibiLayerNormBwd  x gamma mean rstd dy         dx dgamma dbeta
//   AlibiBiasGeluFwd   x bias                       y
//   AlibiBiasGeluBwd   x bias dy                    dx dbias
//
// x has any leading axes and the rows on its last one; mean and rstd have its shape with a last axis
// of length 1. All are float32. Attribute of AlibiLayerNormFwd: epsilon (float).
#include "../alibi_layer.h"
#include "call.h"

namespace {

using alibi::aot::fail;
using alibi::aot::Shape;
using alibi::aot::to_string;
using Shapes = std::vector<Shape>;
using Types = std::vector<int>;

struct NormAttributes : AotKernelData {
  float epsilon = 0;
};

// The operands of one call, taken in order.
class Rows {
 public:
  Rows(const char* op, int count, void** data, int* ranks, int64_t** shapes, const char** dtypes)
      : op_(op), count_(count), data_(data), ranks_(ranks), shapes_(shapes), dtypes_(dtypes) {
    if (count < 1 || ranks[0] < 1) fail(op_, "x must have at least one axis; reshape it");
    shape_.assign(shapes[0], shapes[0] + ranks[0]);
    width_ = shape_.back();
    for (int i = 0; i + 1 < ranks[0]; ++i) rows_ *= shape_[i];
  }

  template <class Args>
  void set_sizes(Args* args) const {
    args->rows = rows_;
    args->width = width_;
  }
  float* matrix(const char* name) { return take(name, shape_); }
  float* vector(const char* name) { return take(name, {width_}); }
  float* row_values(const char* name) {
    Shape shape = shape_;
    shape.back() = 1;
    return take(name, shape);
  }

  int finish(int32_t status) const {
    if (status == ALIBI_OK) return 0;
    fail(op_, std::string("status \"") + alibi_status_name(status) + "\": " + advice(status));
  }

 private:
  static const char* advice(int32_t status) {
    switch (status) {
      case ALIBI_SHAPE:
        return "the last axis of x must have at least one element, and no size may be 2^31 or more";
      case ALIBI_SCALE:
        return "epsilon must be a finite number of at least 0";
      default:
        return alibi::aot::kAdvice[status];
    }
  }

  float* take(const char* name, const Shape& expected) {
    if (next_ >= count_) fail(op_, std::string("operand ") + name + " is missing");
    const int i = next_++;
    const Shape shape(shapes_[i], shapes_[i] + ranks_[i]);
    if (shape != expected) {
      fail(op_, std::string(name) + " must have shape " +
                    to_string(expected.data(), static_cast<int64_t>(expected.size())) +
                    " to fit x, got " + to_string(shape.data(), ranks_[i]));
    }
    if (std::strcmp(dtypes_[i], "float32") != 0) {
      fail(op_, std::string(name) + " must be float32, got " + dtypes_[i] + "; cast it first");
    }
    return static_cast<float*>(data_[i]);
  }

  const char* op_;
  int count_;
  void** data_;
  int* ranks_;
  int64_t** shapes_;
  const char** dtypes_;
  Shape shape_;
  int64_t rows_ = 1, width_ = 0;
  int next_ = 0;
};

Shape shape_of(int i, const int* ranks, int64_t** shapes) {
  return Shape(shapes[i], shapes[i] + ranks[i]);
}

}  // namespace

extern "C" {

ALIBI_EXPORT int AlibiLayerNormFwd(int count, void** data, int* ranks, int64_t** shapes,
                                   const char** dtypes, void*, void* extra) {
  Rows rows("layer_norm", count, data, ranks, shapes, dtypes);
  AlibiLayerNormFwdArgs args{};
  rows.set_sizes(&args);
  const AotKernelData* attributes = static_cast<AotExtra*>(extra)->kernel_data();
  args.epsilon = static_cast<const NormAttributes*>(attributes)->epsilon;
  args.x = rows.matrix("x");
  args.gamma = rows.vector("gamma");
  args.beta = rows.vector("beta");
  args.y = rows.matrix("y");
  args.mean = rows.row_values("mean");
  args.rstd = rows.row_values("rstd");
  return rows.finish(alibi_layer_norm_fwd(&args, nullptr));
}
ALIBI_EXPORT int AlibiLayerNormFwdInit(int*, int64_t**, const char**, AotExtra* extra) {
  auto* attributes = new NormAttributes;
  extra->set_kernel_data(attributes);  // before anything can throw: MindSpore owns it from here
  attributes->epsilon = extra->get_float("epsilon");
  return 0;
}
ALIBI_EXPORT Shapes AlibiLayerNormFwdInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  const Shape x = shape_of(0, ranks, shapes);
  Shape row = x;
  if (!row.empty() && row.back() != -2) row.back() = 1;  // {-2}: the rank is not known yet
  return {x, row, row};
}
ALIBI_EXPORT Types AlibiLayerNormFwdInferType(Types types, AotExtra*) {
  return {types[0], types[0], types[0]};
}

ALIBI_EXPORT int AlibiLayerNormBwd(int count, void** data, int* ranks, int64_t** shapes,
                                   const char** dtypes, void*, void*) {
  Rows rows("layer_norm (gradient)", count, data, ranks, shapes, dtypes);
  AlibiLayerNormBwdArgs args{};
  rows.set_sizes(&args);
  args.x = rows.matrix("x");
  args.gamma = rows.vector("gamma");
  args.mean = rows.row_values("mean");
  args.rstd = rows.row_values("rstd");
  args.dy = rows.matrix("dy");
  args.dx = rows.matrix("dx");
  args.dgamma = rows.vector("dgamma");
  args.dbeta = rows.vector("dbeta");
  return rows.finish(alibi_layer_norm_bwd(&args, nullptr));
}
ALIBI_EXPORT int AlibiLayerNormBwdInit(int*, int64_t**, const char**, AotExtra*) { return 0; }
ALIBI_EXPORT Shapes AlibiLayerNormBwdInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  const Shape gamma = shape_of(1, ranks, shapes);
  return {shape_of(0, ranks, shapes), gamma, gamma};
}
ALIBI_EXPORT Types AlibiLayerNormBwdInferType(Types types, AotExtra*) {
  return {types[0], types[0], types[0]};
}

ALIBI_EXPORT int AlibiBiasGeluFwd(int count, void** data, int* ranks, int64_t** shapes,
                                  const char** dtypes, void*, void*) {
  Rows rows("bias_gelu", count, data, ranks, shapes, dtypes);
  AlibiBiasGeluFwdArgs args{};
  rows.set_sizes(&args);
  args.x = rows.matrix("x");
  args.bias = rows.vector("bias");
  args.y = rows.matrix("y");
  return rows.finish(alibi_bias_gelu_fwd(&args, nullptr));
}
ALIBI_EXPORT int AlibiBiasGeluFwdInit(int*, int64_t**, const char**, AotExtra*) { return 0; }
ALIBI_EXPORT Shapes AlibiBiasGeluFwdInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  return {shape_of(0, ranks, shapes)};
}
ALIBI_EXPORT Types AlibiBiasGeluFwdInferType(Types types, AotExtra*) { return {types[0]}; }

ALIBI_EXPORT int AlibiBiasGeluBwd(int count, void** data, int* ranks, int64_t** shapes,
                                  const char** dtypes, void*, void*) {
  Rows rows("bias_gelu (gradient)", count, data, ranks, shapes, dtypes);
  AlibiBiasGeluBwdArgs args{};
  rows.set_sizes(&args);
  args.x = rows.matrix("x");
  args.bias = rows.vector("bias");
  args.dy = rows.matrix("dy");
  args.dx = rows.matrix("dx");
  args.dbias = rows.vector("dbias");
  return rows.finish(alibi_bias_gelu_bwd(&args, nullptr));
}
ALIBI_EXPORT int AlibiBiasGeluBwdInit(int*, int64_t**, const char**, AotExtra*) { return 0; }
ALIBI_EXPORT Shapes AlibiBiasGeluBwdInferShape(int* ranks, int64_t** shapes, AotExtra*) {
  return {shape_of(0, ranks, shapes), shape_of(1, ranks, shapes)};
}
ALIBI_EXPORT Types AlibiBiasGeluBwdInferType(Types types, AotExtra*) {
  return {types[0], types[0]};
}

}  // extern "C"
