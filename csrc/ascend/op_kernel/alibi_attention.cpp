// Entry of the forward op: q, k, v, slopes, spans (optional), reach (optional) -> out, lse. DTYPE_Q
// is set by the op build.
#include "attention_fwd.h"

extern "C" __global__ __aicore__ void alibi_attention(GM_ADDR q, GM_ADDR k, GM_ADDR v,
                                                      GM_ADDR slopes, GM_ADDR spans, GM_ADDR reach,
                                                      GM_ADDR out, GM_ADDR lse, GM_ADDR workspace,
                                                      GM_ADDR tiling) {
  using namespace alibi::ascend;
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  REGISTER_TILING_DEFAULT(alibi::ascend::AttentionTiling);
  GET_TILING_DATA_WITH_STRUCT(AttentionTiling, t, tiling);
  int32_t core = AscendC::GetBlockIdx();
  if ASCEND_IS_AIV {
    core /= AscendC::GetTaskRation();
  }
  const Workspace space = fwd_workspace(t.head_dim);
  GM_ADDR own = AscendC::GetUserWorkspace(workspace) + core * space.bytes;
  FwdTensors<DTYPE_Q> tensors;
  tensors.q.SetGlobalBuffer((__gm__ DTYPE_Q*)q);
  tensors.k.SetGlobalBuffer((__gm__ DTYPE_Q*)k);
  tensors.v.SetGlobalBuffer((__gm__ DTYPE_Q*)v);
  tensors.slopes.SetGlobalBuffer((__gm__ float*)slopes);
  tensors.out.SetGlobalBuffer((__gm__ DTYPE_Q*)out);
  tensors.lse.SetGlobalBuffer((__gm__ float*)lse);
  tensors.scores.SetGlobalBuffer((__gm__ float*)(own + space.scores));
  tensors.weights.SetGlobalBuffer((__gm__ DTYPE_Q*)(own + space.weights));
  tensors.product.SetGlobalBuffer((__gm__ float*)(own + space.product));
  tensors.parts.SetGlobalBuffer(
      (__gm__ float*)(AscendC::GetUserWorkspace(workspace) + t.blocks * space.bytes));
  TaskList tasks;
  tasks.Init(t, spans, reach);
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    FwdCube<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  } else {
    FwdVector<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  }
}
