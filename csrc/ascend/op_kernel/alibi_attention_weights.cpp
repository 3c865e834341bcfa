// Entry of the weights op: q, k, slopes, spans (optional) -> p. DTYPE_Q is set by the op build.
#include "weights_fwd.h"

extern "C" __global__ __aicore__ void alibi_attention_weights(GM_ADDR q, GM_ADDR k, GM_ADDR slopes,
                                                              GM_ADDR spans, GM_ADDR p,
                                                              GM_ADDR workspace, GM_ADDR tiling) {
  using namespace alibi::ascend;
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  REGISTER_TILING_DEFAULT(alibi::ascend::AttentionTiling);
  GET_TILING_DATA_WITH_STRUCT(AttentionTiling, t, tiling);
  int32_t core = AscendC::GetBlockIdx();
  if ASCEND_IS_AIV {
    core /= AscendC::GetTaskRation();
  }
  WeightsTensors<DTYPE_Q> tensors;
  tensors.q.SetGlobalBuffer((__gm__ DTYPE_Q*)q);
  tensors.k.SetGlobalBuffer((__gm__ DTYPE_Q*)k);
  tensors.slopes.SetGlobalBuffer((__gm__ float*)slopes);
  tensors.p.SetGlobalBuffer((__gm__ DTYPE_Q*)p);
  tensors.scores.SetGlobalBuffer(
      (__gm__ float*)(AscendC::GetUserWorkspace(workspace) + core * kFloatTiles));
  TaskList tasks;
  tasks.Init(t, spans, nullptr);
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    WeightsCube<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  } else {
    WeightsVector<DTYPE_Q> op;
    op.Init(t, tensors, &pipe);
    op.Process(&tasks, core);
  }
}
