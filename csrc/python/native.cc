// alibi_kernels._native: the CPU kernels on NumPy arrays. There is no MindSpore in it.
//
// alibi_kernels/native.py checks the arguments, allocates the results and turns every layout into a
// [B, H, S, D] view. Here each view becomes the strided tensor of alibi_attention.h, without a
// copy, and the kernel runs without the GIL. A function returns the AlibiStatus; native.py owns the
// exceptions, because contract.py owns the message text. What would corrupt memory (a wrong shape,
// dtype or stride) is checked here once more.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "alibi_attention.h"

namespace alibi::python {
namespace {

namespace py = pybind11;
using Array = const py::array&;
using Optional = std::optional<py::array>;
using Shape = std::vector<py::ssize_t>;

// Everything about a call that is not an array, and the counters it leaves behind.
struct Call {
  float scale;
  bool causal;
  bool signed_bias;
  bool prune;
  int threads;
  std::optional<std::string> isa;
  AlibiStats stats{0, 0};
};

struct Failure {
  AlibiStatus status;
};

void require(bool condition, AlibiStatus status) {
  if (!condition) throw Failure{status};
}

// "float32" for native float32 and so on; the name is how ml_dtypes' bfloat16 is told from other
// two-byte types.
AlibiDtype dtype_of(Array array) {
  const std::string name = py::str(array.dtype().attr("name"));
  if (name == "float32") return ALIBI_FLOAT32;
  if (name == "float16") return ALIBI_FLOAT16;
  if (name == "bfloat16") return ALIBI_BFLOAT16;
  throw Failure{ALIBI_DTYPE};
}

// A [B, H, S, X] view as a strided tensor. Any strides but the last are free: negative and zero
// ones too.
AlibiTensor tensor(Array array, const Shape& shape, AlibiDtype dtype, bool writeable) {
  require(array.ndim() == 4 && Shape(array.shape(), array.shape() + 4) == shape, ALIBI_SHAPE);
  require(dtype_of(array) == dtype, ALIBI_DTYPE);
  require(!writeable || array.writeable(), ALIBI_SHAPE);
  if (array.size() == 0) return {const_cast<void*>(array.data()), 0, 0, 0};
  const py::ssize_t size = array.itemsize();
  std::array<int64_t, 4> strides;
  for (int axis = 0; axis < 4; ++axis) {
    // NumPy leaves the stride of an axis of length 1 undefined.
    const py::ssize_t bytes = shape[axis] > 1 ? array.strides(axis) : (axis == 3 ? size : 0);
    require(bytes % size == 0, ALIBI_SHAPE);
    strides[axis] = bytes / size;
  }
  require(strides[3] == 1, ALIBI_SHAPE);
  return {const_cast<void*>(array.data()), strides[0], strides[1], strides[2]};
}

// A contiguous array of float or int32_t; null for None.
template <typename T>
T* vector(const Optional& array, const Shape& shape, bool writeable = false) {
  if (!array) return nullptr;
  require(py::isinstance<py::array_t<T, py::array::c_style>>(*array), ALIBI_DTYPE);
  require(Shape(array->shape(), array->shape() + array->ndim()) == shape, ALIBI_SHAPE);
  require(!writeable || array->writeable(), ALIBI_SHAPE);
  return static_cast<T*>(const_cast<void*>(array->data()));
}

struct Shapes {
  Shape q, k, lse, p, slopes, spans;
};

// Fills the problem from q [B, Hq, Sq, D] and k [B, Hkv, Sk, D], and names the shapes that follow
// from it.
Shapes describe(const Call& call, Array q, Array k, AlibiProblem* problem) {
  require(q.ndim() == 4 && k.ndim() == 4, ALIBI_SHAPE);
  *problem = {};
  problem->batch = q.shape(0);
  problem->heads_q = q.shape(1);
  problem->heads_kv = k.shape(1);
  problem->len_q = q.shape(2);
  problem->len_k = k.shape(2);
  problem->head_dim = q.shape(3);
  problem->dtype = dtype_of(q);
  problem->bias = call.signed_bias ? ALIBI_SIGNED : ALIBI_SYMMETRIC;
  problem->causal = call.causal;
  problem->prune = call.prune;
  problem->scale = call.scale;
  const auto& [b, hq, hkv, sq, sk, d] =
      std::tie(problem->batch, problem->heads_q, problem->heads_kv, problem->len_q, problem->len_k,
               problem->head_dim);
  return {{b, hq, sq, d}, {b, hkv, sk, d}, {b, hq, sq}, {b, hq, sq, sk}, {hq}, {b, 3}};
}

// Runs an entry point on `args` without the GIL and hands the counters to `call`.
template <typename Args>
int32_t run(int32_t (*entry)(const Args*, void*), Args* args, Call* call) {
  call->stats = {0, 0};
  AlibiOptions options{call->threads, call->isa ? call->isa->c_str() : nullptr, &call->stats};
  args->options = &options;
  py::gil_scoped_release release;
  return entry(args, nullptr);
}

// A failed check is a status too.
template <typename Function>
int32_t guarded(Function function) {
  try {
    return function();
  } catch (const Failure& failure) {
    return failure.status;
  }
}

int32_t attention_fwd(Call* call, Array q, Array k, Array v, Array slopes, Optional spans,
                      Array out, Array lse) {
  return guarded([&] {
    AlibiAttentionFwdArgs args{};
    const Shapes shapes = describe(*call, q, k, &args.problem);
    const AlibiDtype dtype = dtype_of(q);
    args.q = tensor(q, shapes.q, dtype, false);
    args.k = tensor(k, shapes.k, dtype, false);
    args.v = tensor(v, shapes.k, dtype, false);
    args.slopes = vector<float>(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.out = tensor(out, shapes.q, dtype, true);
    args.lse = vector<float>(lse, shapes.lse, true);
    return run(alibi_attention_fwd, &args, call);
  });
}

int32_t attention_bwd(Call* call, Array q, Array k, Array v, Array slopes, Optional spans,
                      Array out, Array lse, Array dout, Optional dlse, Array dq, Array dk, Array dv,
                      Optional dslopes) {
  return guarded([&] {
    AlibiAttentionBwdArgs args{};
    const Shapes shapes = describe(*call, q, k, &args.problem);
    const AlibiDtype dtype = dtype_of(q);
    args.q = tensor(q, shapes.q, dtype, false);
    args.k = tensor(k, shapes.k, dtype, false);
    args.v = tensor(v, shapes.k, dtype, false);
    args.slopes = vector<float>(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.out = tensor(out, shapes.q, dtype, false);
    args.lse = vector<float>(lse, shapes.lse);
    args.dout = tensor(dout, shapes.q, dtype, false);
    args.dlse = vector<float>(dlse, shapes.lse);
    args.dq = tensor(dq, shapes.q, dtype, true);
    args.dk = tensor(dk, shapes.k, dtype, true);
    args.dv = tensor(dv, shapes.k, dtype, true);
    args.dslopes = vector<float>(dslopes, shapes.slopes, true);
    return run(alibi_attention_bwd, &args, call);
  });
}

int32_t weights_fwd(Call* call, Array q, Array k, Array slopes, Optional spans, Array p) {
  return guarded([&] {
    AlibiWeightsFwdArgs args{};
    const Shapes shapes = describe(*call, q, k, &args.problem);
    const AlibiDtype dtype = dtype_of(q);
    args.q = tensor(q, shapes.q, dtype, false);
    args.k = tensor(k, shapes.k, dtype, false);
    args.slopes = vector<float>(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.p = tensor(p, shapes.p, dtype, true);
    return run(alibi_attention_weights_fwd, &args, call);
  });
}

int32_t weights_bwd(Call* call, Array q, Array k, Array slopes, Optional spans, Array p, Array dp,
                    Array dq, Array dk, Optional dslopes) {
  return guarded([&] {
    AlibiWeightsBwdArgs args{};
    const Shapes shapes = describe(*call, q, k, &args.problem);
    const AlibiDtype dtype = dtype_of(q);
    args.q = tensor(q, shapes.q, dtype, false);
    args.k = tensor(k, shapes.k, dtype, false);
    args.slopes = vector<float>(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.p = tensor(p, shapes.p, dtype, false);
    args.dp = tensor(dp, shapes.p, dtype, false);
    args.dq = tensor(dq, shapes.q, dtype, true);
    args.dk = tensor(dk, shapes.k, dtype, true);
    args.dslopes = vector<float>(dslopes, shapes.slopes, true);
    return run(alibi_attention_weights_bwd, &args, call);
  });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  if (alibi_abi_version() != ALIBI_ABI_VERSION) {
    throw py::import_error("libalibi_cpu.so beside alibi_kernels._native is of another version");
  }
  module.doc() = "The CPU kernels on NumPy arrays; alibi_kernels.native is the public side.";
  py::class_<Call>(module, "Call")
      .def(py::init([](float scale, bool causal, bool signed_bias, bool prune, int threads,
                       std::optional<std::string> isa) {
             return Call{scale, causal, signed_bias, prune, threads, std::move(isa)};
           }),
           py::kw_only(), py::arg("scale"), py::arg("causal"), py::arg("signed_bias"),
           py::arg("prune"), py::arg("threads"), py::arg("isa"))
      .def_property_readonly("tiles_visited",
                             [](const Call& call) { return call.stats.tiles_visited; })
      .def_property_readonly("tiles_allowed",
                             [](const Call& call) { return call.stats.tiles_allowed; });
  module.def("attention_fwd", &attention_fwd);
  module.def("attention_bwd", &attention_bwd);
  module.def("weights_fwd", &weights_fwd);
  module.def("weights_bwd", &weights_bwd);
  module.def("status_name", &alibi_status_name);
  module.def("build_info", &alibi_build_info);
}

}  // namespace alibi::python
