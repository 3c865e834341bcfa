// alibi_kernels._native: the CPU kernels on NumPy arrays. There is no MindSpore in it.
//
// alibi_kernels/native.py checks what a call is, once for all calls alike, and allocates the
// results. Here each array becomes the strided tensor of alibi_attention.h, whatever its layout,
// without a copy, and the kernel runs without the GIL. What can differ from call to call (shapes,
// dtypes, strides, alignment, the values of slopes) is checked here every time, because the same
// checks in Python take longer than a small kernel. A function returns the AlibiStatus and the
// counters; native.py owns the exceptions, because rules.py owns the message text.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "alibi_attention.h"
#include "alibi_cache.h"
#include "alibi_layer.h"

namespace alibi::python {
namespace {

namespace py = pybind11;
using Array = const py::array&;
using Optional = std::optional<py::array>;

// The sizes of up to four axes, without the allocation of a std::vector.
struct Shape {
  std::array<py::ssize_t, 4> sizes;
  int axes;

  Shape(std::initializer_list<py::ssize_t> list) : axes(static_cast<int>(list.size())) {
    std::copy(list.begin(), list.end(), sizes.begin());
  }
  py::ssize_t operator[](int axis) const { return sizes[static_cast<size_t>(axis)]; }
  bool is_of(Array array) const {
    return array.ndim() == axes && std::equal(array.shape(), array.shape() + axes, sizes.data());
  }
};

// Everything about a call that is not an array. Calls share one, from several threads.
struct Call {
  float scale;
  bool causal;
  bool signed_bias;
  bool prune;
  bool bsnd;  // the tensors are [B, S, H, D]
  int threads;
  std::optional<std::string> isa;
};

// Status, then the counters: tiles_visited, tiles_allowed, decode_rows, tiles_scored.
using Result = std::tuple<int32_t, int64_t, int64_t, int64_t, int64_t>;

struct Failure {
  AlibiStatus status;
};

void require(bool condition, AlibiStatus status) {
  if (!condition) throw Failure{status};
}

// ml_dtypes registers bfloat16 with NumPy at run time, so that its number is only known by name.
// Stored in a way that is safe when the import lets another thread run.
bool is_bfloat16(const py::dtype& dtype) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<int> number;
  number.call_once_and_store_result(
      [] { return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).num(); });
  return dtype.num() == number.get_stored();
}

constexpr int kNumPyHalf = 23;

int32_t dtype_of(Array array) {
  const py::dtype dtype = array.dtype();
  require(dtype.byteorder() != '>', ALIBI_DTYPE);  // '=', or '|' where there is no order
  if (dtype.num() == py::dtype::num_of<float>()) return ALIBI_FLOAT32;
  if (dtype.num() == kNumPyHalf) return ALIBI_FLOAT16;
  require(dtype.itemsize() == 2 && is_bfloat16(dtype), ALIBI_DTYPE);
  return ALIBI_BFLOAT16;
}

// Which axis of an array is batch, head, sequence, element.
using Axes = std::array<int, 4>;
constexpr Axes kBnsd{0, 1, 2, 3}, kBsnd{0, 2, 1, 3};

const Axes& axes_of(const Call& call) { return call.bsnd ? kBsnd : kBnsd; }

// `shape` is [B, H, S, X] whatever the order of the axes. Any strides but the last are free:
// negative and zero ones too.
AlibiTensor tensor(Array array, const Shape& shape, const Axes& axes, int32_t dtype,
                   bool writeable) {
  require(array.ndim() == 4, ALIBI_SHAPE);
  require(dtype_of(array) == dtype, ALIBI_DTYPE);
  require(!writeable || array.writeable(), ALIBI_SHAPE);
  for (int i = 0; i < 4; ++i) require(array.shape(axes[i]) == shape[i], ALIBI_SHAPE);
  if (array.size() == 0) return {const_cast<void*>(array.data()), 0, 0, 0};
  const py::ssize_t size = array.itemsize();
  require(reinterpret_cast<std::uintptr_t>(array.data()) % size == 0, ALIBI_SHAPE);
  std::array<int64_t, 4> strides;
  for (int i = 0; i < 4; ++i) {
    // NumPy leaves the stride of an axis of length 1 undefined.
    const py::ssize_t bytes = shape[i] > 1 ? array.strides(axes[i]) : (i == 3 ? size : 0);
    require(bytes % size == 0, ALIBI_SHAPE);
    strides[i] = bytes / size;
  }
  require(strides[3] == 1, ALIBI_SHAPE);
  return {const_cast<void*>(array.data()), strides[0], strides[1], strides[2]};
}

// A contiguous array of float or int32_t; null for None.
template <typename T>
T* vector(const Optional& array, const Shape& shape, bool writeable = false) {
  if (!array) return nullptr;
  require(py::isinstance<py::array_t<T, py::array::c_style>>(*array), ALIBI_DTYPE);
  require(shape.is_of(*array), ALIBI_SHAPE);
  require(reinterpret_cast<std::uintptr_t>(array->data()) % sizeof(T) == 0, ALIBI_SHAPE);
  require(!writeable || array->writeable(), ALIBI_SHAPE);
  return static_cast<T*>(const_cast<void*>(array->data()));
}

// Slopes come as values, which no shape tells about; a NaN would spread through the result.
const float* slopes_of(Array array, const Shape& shape) {
  const float* slopes = vector<float>(array, shape);
  for (py::ssize_t h = 0; h < shape[0]; ++h) require(std::isfinite(slopes[h]), ALIBI_SHAPE);
  return slopes;
}

struct Shapes {
  Shape q, k, lse, p, slopes, spans, key_norms;
};

// Fills the problem from q and k, and names the shapes that follow from it.
Shapes describe(const Call& call, Array q, Array k, AlibiProblem* problem) {
  require(q.ndim() == 4 && k.ndim() == 4, ALIBI_SHAPE);
  const Axes& axes = axes_of(call);
  *problem = {};
  problem->batch = q.shape(axes[0]);
  problem->heads_q = q.shape(axes[1]);
  problem->heads_kv = k.shape(axes[1]);
  problem->len_q = q.shape(axes[2]);
  problem->len_k = k.shape(axes[2]);
  problem->head_dim = q.shape(axes[3]);
  problem->dtype = dtype_of(q);
  problem->bias = call.signed_bias ? ALIBI_SIGNED : ALIBI_SYMMETRIC;
  problem->causal = call.causal;
  problem->prune = call.prune;
  problem->scale = call.scale;
  const auto& [b, hq, hkv, sq, sk, d] =
      std::tie(problem->batch, problem->heads_q, problem->heads_kv, problem->len_q, problem->len_k,
               problem->head_dim);
  const py::ssize_t blocks = (sk + ALIBI_NORM_KEYS - 1) / ALIBI_NORM_KEYS;
  return {{b, hq, sq, d}, {b, hkv, sk, d}, {b, hq, sq},     {b, hq, sq, sk},
          {hq},           {b, 3},          {b, hkv, blocks}};
}

// Runs an entry point on `args` without the GIL.
template <typename Args>
Result run(int32_t (*entry)(const Args*, void*), Args* args, const Call& call) {
  AlibiStats stats{};
  AlibiOptions options{call.threads, call.isa ? call.isa->c_str() : nullptr, &stats};
  args->options = &options;
  int32_t status;
  {
    py::gil_scoped_release release;
    status = entry(args, nullptr);
  }
  return {status, stats.tiles_visited, stats.tiles_allowed, stats.decode_rows, stats.tiles_scored};
}

// A failed check is a status too.
template <typename Function>
Result guarded(Function function) {
  try {
    return function();
  } catch (const Failure& failure) {
    return {failure.status, 0, 0, 0, 0};
  }
}

Result attention_fwd(const Call& call, Array q, Array k, Array v, Array slopes, Optional spans,
                     Optional key_norms, Array out, Array lse) {
  return guarded([&] {
    AlibiAttentionFwdArgs args{};
    const Shapes shapes = describe(call, q, k, &args.problem);
    const Axes& axes = axes_of(call);
    args.q = tensor(q, shapes.q, axes, args.problem.dtype, false);
    args.k = tensor(k, shapes.k, axes, args.problem.dtype, false);
    args.v = tensor(v, shapes.k, axes, args.problem.dtype, false);
    args.slopes = slopes_of(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.key_norms = vector<float>(key_norms, shapes.key_norms);
    args.out = tensor(out, shapes.q, axes, args.problem.dtype, true);
    args.lse = vector<float>(lse, shapes.lse, true);
    return run(alibi_attention_fwd, &args, call);
  });
}

Result attention_bwd(const Call& call, Array q, Array k, Array v, Array slopes, Optional spans,
                     Array out, Array lse, Array dout, Optional dlse, Array dq, Array dk, Array dv,
                     Optional dslopes) {
  return guarded([&] {
    AlibiAttentionBwdArgs args{};
    const Shapes shapes = describe(call, q, k, &args.problem);
    const Axes& axes = axes_of(call);
    args.q = tensor(q, shapes.q, axes, args.problem.dtype, false);
    args.k = tensor(k, shapes.k, axes, args.problem.dtype, false);
    args.v = tensor(v, shapes.k, axes, args.problem.dtype, false);
    args.slopes = slopes_of(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.out = tensor(out, shapes.q, axes, args.problem.dtype, false);
    args.lse = vector<float>(lse, shapes.lse);
    args.dout = tensor(dout, shapes.q, axes, args.problem.dtype, false);
    args.dlse = vector<float>(dlse, shapes.lse);
    args.dq = tensor(dq, shapes.q, axes, args.problem.dtype, true);
    args.dk = tensor(dk, shapes.k, axes, args.problem.dtype, true);
    args.dv = tensor(dv, shapes.k, axes, args.problem.dtype, true);
    args.dslopes = vector<float>(dslopes, shapes.slopes, true);
    return run(alibi_attention_bwd, &args, call);
  });
}

Result weights_fwd(const Call& call, Array q, Array k, Array slopes, Optional spans, Array p) {
  return guarded([&] {
    AlibiWeightsFwdArgs args{};
    const Shapes shapes = describe(call, q, k, &args.problem);
    const Axes& axes = axes_of(call);
    args.q = tensor(q, shapes.q, axes, args.problem.dtype, false);
    args.k = tensor(k, shapes.k, axes, args.problem.dtype, false);
    args.slopes = slopes_of(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.p = tensor(p, shapes.p, kBnsd, args.problem.dtype, true);
    return run(alibi_attention_weights_fwd, &args, call);
  });
}

Result weights_bwd(const Call& call, Array q, Array k, Array slopes, Optional spans, Array p,
                   Array dp, Array dq, Array dk, Optional dslopes) {
  return guarded([&] {
    AlibiWeightsBwdArgs args{};
    const Shapes shapes = describe(call, q, k, &args.problem);
    const Axes& axes = axes_of(call);
    args.q = tensor(q, shapes.q, axes, args.problem.dtype, false);
    args.k = tensor(k, shapes.k, axes, args.problem.dtype, false);
    args.slopes = slopes_of(slopes, shapes.slopes);
    args.spans = vector<int32_t>(spans, shapes.spans);
    args.p = tensor(p, shapes.p, kBnsd, args.problem.dtype, false);
    args.dp = tensor(dp, shapes.p, kBnsd, args.problem.dtype, false);
    args.dq = tensor(dq, shapes.q, axes, args.problem.dtype, true);
    args.dk = tensor(dk, shapes.k, axes, args.problem.dtype, true);
    args.dslopes = vector<float>(dslopes, shapes.slopes, true);
    return run(alibi_attention_weights_bwd, &args, call);
  });
}

// ---- alibi_layer.h. Every array is contiguous float32; x is [rows, width].

struct RowsCall {
  int threads;
  std::optional<std::string> isa;
};

template <typename Args, typename Fill>
int32_t run_rows(int32_t (*entry)(const Args*, void*), const RowsCall& call, Array x, Fill fill) {
  Args args{};
  AlibiOptions options{call.threads, call.isa ? call.isa->c_str() : nullptr, nullptr};
  args.options = &options;
  try {
    require(x.ndim() == 2, ALIBI_SHAPE);
    args.rows = x.shape(0);
    args.width = x.shape(1);
    fill(&args, Shape{args.rows, args.width}, Shape{args.width}, Shape{args.rows});
  } catch (const Failure& failure) {
    return failure.status;
  }
  py::gil_scoped_release release;
  return entry(&args, nullptr);
}

int32_t layer_norm_fwd(const RowsCall& call, float epsilon, Array x, Array gamma, Array beta,
                       Array y, Array mean, Array rstd) {
  const auto fill = [&](AlibiLayerNormFwdArgs* a, const Shape& all, const Shape& row,
                        const Shape& column) {
    a->epsilon = epsilon;
    a->x = vector<float>(x, all);
    a->gamma = vector<float>(gamma, row);
    a->beta = vector<float>(beta, row);
    a->y = vector<float>(y, all, true);
    a->mean = vector<float>(mean, column, true);
    a->rstd = vector<float>(rstd, column, true);
  };
  return run_rows(alibi_layer_norm_fwd, call, x, fill);
}

int32_t layer_norm_bwd(const RowsCall& call, Array x, Array gamma, Array mean, Array rstd, Array dy,
                       Array dx, Array dgamma, Array dbeta) {
  const auto fill = [&](AlibiLayerNormBwdArgs* a, const Shape& all, const Shape& row,
                        const Shape& column) {
    a->x = vector<float>(x, all);
    a->gamma = vector<float>(gamma, row);
    a->mean = vector<float>(mean, column);
    a->rstd = vector<float>(rstd, column);
    a->dy = vector<float>(dy, all);
    a->dx = vector<float>(dx, all, true);
    a->dgamma = vector<float>(dgamma, row, true);
    a->dbeta = vector<float>(dbeta, row, true);
  };
  return run_rows(alibi_layer_norm_bwd, call, x, fill);
}

int32_t bias_gelu_fwd(const RowsCall& call, Array x, Array bias, Array y) {
  const auto fill = [&](AlibiBiasGeluFwdArgs* a, const Shape& all, const Shape& row, const Shape&) {
    a->x = vector<float>(x, all);
    a->bias = vector<float>(bias, row);
    a->y = vector<float>(y, all, true);
  };
  return run_rows(alibi_bias_gelu_fwd, call, x, fill);
}

int32_t bias_gelu_bwd(const RowsCall& call, Array x, Array bias, Array dy, Array dx, Array dbias) {
  const auto fill = [&](AlibiBiasGeluBwdArgs* a, const Shape& all, const Shape& row, const Shape&) {
    a->x = vector<float>(x, all);
    a->bias = vector<float>(bias, row);
    a->dy = vector<float>(dy, all);
    a->dx = vector<float>(dx, all, true);
    a->dbias = vector<float>(dbias, row, true);
  };
  return run_rows(alibi_bias_gelu_bwd, call, x, fill);
}

// ---- alibi_cache.h. All batch items start at `start`; norms are raised in place.

int32_t key_norms(const RowsCall& call, bool bsnd, Array k, int64_t start, Array norms) {
  AlibiKeyNormsArgs args{};
  AlibiOptions options{call.threads, call.isa ? call.isa->c_str() : nullptr, nullptr};
  args.options = &options;
  std::vector<int32_t> starts;
  try {
    require(k.ndim() == 4 && norms.ndim() == 3, ALIBI_SHAPE);
    require(start >= 0 && start <= INT32_MAX, ALIBI_SHAPE);
    const Axes& axes = bsnd ? kBsnd : kBnsd;
    const Shape shape{k.shape(axes[0]), k.shape(axes[1]), k.shape(axes[2]), k.shape(axes[3])};
    args.batch = shape[0];
    args.heads_kv = shape[1];
    args.len_k = shape[2];
    args.head_dim = shape[3];
    args.dtype = dtype_of(k);
    args.k = tensor(k, shape, axes, dtype_of(k), false);
    starts.assign(static_cast<size_t>(shape[0]), static_cast<int32_t>(start));
    args.start = starts.data();
    args.blocks = norms.shape(2);
    args.norms = vector<float>(norms, {shape[0], shape[1], norms.shape(2)}, true);
  } catch (const Failure& failure) {
    return failure.status;
  }
  py::gil_scoped_release release;
  return alibi_key_norms(&args, nullptr);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  if (alibi_abi_version() != ALIBI_ABI_VERSION) {
    throw py::import_error("libalibi_cpu.so beside alibi_kernels._native is of another version");
  }
  module.doc() = "The CPU kernels on NumPy arrays; alibi_kernels.native is the public side.";
  py::class_<Call>(module, "Call")
      .def(py::init([](float scale, bool causal, bool signed_bias, bool prune, bool bsnd,
                       int threads, std::optional<std::string> isa) {
             return Call{scale, causal, signed_bias, prune, bsnd, threads, std::move(isa)};
           }),
           py::kw_only(), py::arg("scale"), py::arg("causal"), py::arg("signed_bias"),
           py::arg("prune"), py::arg("bsnd"), py::arg("threads"), py::arg("isa"));
  module.def("attention_fwd", &attention_fwd);
  module.def("attention_bwd", &attention_bwd);
  module.def("weights_fwd", &weights_fwd);
  module.def("weights_bwd", &weights_bwd);
  py::class_<RowsCall>(module, "RowsCall")
      .def(py::init([](int threads, std::optional<std::string> isa) {
             return RowsCall{threads, std::move(isa)};
           }),
           py::arg("threads"), py::arg("isa"));
  module.def("layer_norm_fwd", &layer_norm_fwd);
  module.def("layer_norm_bwd", &layer_norm_bwd);
  module.def("bias_gelu_fwd", &bias_gelu_fwd);
  module.def("bias_gelu_bwd", &bias_gelu_bwd);
  module.def("key_norms", &key_norms);
  module.def("status_name", &alibi_status_name);
  module.def("build_info", &alibi_build_info);
}

}  // namespace alibi::python
