// Entry of the backward op: q, k, v, slopes, lse, delta, dout, spans (optional), reach (optional)
// -> dq, dk, dv and the slope gradient per row. DTYPE_Q is set by the op build.
#include "attention_grad_vector.h"

extern "C" __global__ __aicore__ void alibi_attention_grad(GM_ADDR q, GM_ADDR k, GM_ADDR v,
                                                           GM_ADDR slopes, GM_ADDR lse,
                                                           GM_ADDR delta, GM_ADDR dout,
                                                           GM_ADDR spans, GM_ADDR reach, GM_ADDR dq,
                                                           GM_ADDR dk, GM_ADDR dv, GM_ADDR dslopes,
                                                           GM_ADDR workspace, GM_ADDR tiling) {
  using namespace alibi::ascend;
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  REGISTER_TILING_DEFAULT(alibi::ascend::AttentionTiling);
  GET_TILING_DATA_WITH_STRUCT(AttentionTiling, t, tiling);
  int32_t core = AscendC::GetBlockIdx();
  if ASCEND_IS_AIV {
    core /= AscendC::GetTaskRation();
  }
  const GradWorkspace space = grad_workspace(t.head_dim);
  GM_ADDR own = AscendC::GetUserWorkspace(workspace) + core * space.bytes;
  GradTensors<DTYPE_Q> tensors;
  tensors.q.SetGlobalBuffer((__gm__ DTYPE_Q*)q);
  tensors.k.SetGlobalBuffer((__gm__ DTYPE_Q*)k);
  tensors.v.SetGlobalBuffer((__gm__ DTYPE_Q*)v);
  tensors.slopes.SetGlobalBuffer((__gm__ float*)slopes);
  tensors.lse.SetGlobalBuffer((__gm__ float*)lse);
  tensors.delta.SetGlobalBuffer((__gm__ float*)delta);
  tensors.dout.SetGlobalBuffer((__gm__ DTYPE_Q*)dout);
  tensors.dq.SetGlobalBuffer((__gm__ DTYPE_Q*)dq);
  tensors.dk.SetGlobalBuffer((__gm__ DTYPE_Q*)dk);
  tensors.dv.SetGlobalBuffer((__gm__ DTYPE_Q*)dv);
  tensors.dslopes.SetGlobalBuffer((__gm__ float*)dslopes);
  tensors.scores.SetGlobalBuffer((__gm__ float*)(own + space.scores));
  tensors.weight_grads.SetGlobalBuffer((__gm__ float*)(own + space.weight_grads));
  tensors.weights.SetGlobalBuffer((__gm__ DTYPE_Q*)(own + space.weights));
  tensors.score_grads.SetGlobalBuffer((__gm__ DTYPE_Q*)(own + space.score_grads));
  tensors.sums.SetGlobalBuffer((__gm__ float*)(own + space.sums));
  TaskList tasks;
  tasks.Init(t, spans, reach);
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    GradCube<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  } else {
    GradVector<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  }
}
