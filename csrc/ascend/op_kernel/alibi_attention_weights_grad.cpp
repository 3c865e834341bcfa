// Entry of the gradient of the weights op: q, k, p, dp, spans (optional) -> dq, dk and the slope
// gradient per row. DTYPE_Q is set by the op build.
#include "weights_grad.h"

extern "C" __global__ __aicore__ void alibi_attention_weights_grad(
    GM_ADDR q, GM_ADDR k, GM_ADDR p, GM_ADDR dp, GM_ADDR spans, GM_ADDR dq, GM_ADDR dk,
    GM_ADDR dslopes, GM_ADDR workspace, GM_ADDR tiling) {
  using namespace alibi::ascend;
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  REGISTER_TILING_DEFAULT(alibi::ascend::AttentionTiling);
  GET_TILING_DATA_WITH_STRUCT(AttentionTiling, t, tiling);
  int32_t core = AscendC::GetBlockIdx();
  if ASCEND_IS_AIV {
    core /= AscendC::GetTaskRation();
  }
  const WeightsGradWorkspace space = weights_grad_workspace(t.head_dim);
  GM_ADDR all = AscendC::GetUserWorkspace(workspace);
  GM_ADDR own = all + core * space.bytes;
  WeightsGradTensors<DTYPE_Q> tensors;
  tensors.q.SetGlobalBuffer((__gm__ DTYPE_Q*)q);
  tensors.k.SetGlobalBuffer((__gm__ DTYPE_Q*)k);
  tensors.p.SetGlobalBuffer((__gm__ DTYPE_Q*)p);
  tensors.dp.SetGlobalBuffer((__gm__ DTYPE_Q*)dp);
  tensors.dq.SetGlobalBuffer((__gm__ DTYPE_Q*)dq);
  tensors.dk.SetGlobalBuffer((__gm__ DTYPE_Q*)dk);
  tensors.dslopes.SetGlobalBuffer((__gm__ float*)dslopes);
  tensors.score_grads.SetGlobalBuffer((__gm__ DTYPE_Q*)(own + space.score_grads));
  tensors.sums.SetGlobalBuffer((__gm__ float*)(own + space.sums));
  tensors.row_sums.SetGlobalBuffer((__gm__ float*)(all + t.blocks * space.bytes));
  TaskList tasks;
  tasks.Init(t, spans, nullptr);
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    WeightsGradCube<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  } else {
    WeightsGradVector<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  }
}
