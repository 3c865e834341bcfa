"""The mutants of the backward kernel; mutants.py explains the columns."""

from __future__ import annotations

from tests.ascend.mutants import CUBE, GRAD, GROWS, GVEC, PAIRS, Mutant

BACKWARD = (
    Mutant(
        "tiles used before they are loaded",
        GVEC,
        "WaitFlag<HardEvent::MTE2_V>(slot); WaitFlag<HardEvent::MTE3_V>",
        "WaitFlag<HardEvent::MTE3_V>",
    ),
    Mutant(
        "tiles loaded over tiles in use",
        GVEC,
        "WaitFlag<HardEvent::V_MTE2>(slot); AscendC::DataCopy(tile(scores_, slot)",
        "AscendC::DataCopy(tile(scores_, slot)",
    ),
    Mutant(
        "gradients stored before they are rounded",
        GVEC,
        "WaitFlag<HardEvent::V_MTE3>(kStoreSlot); AscendC::DataCopy(g_.score_grads",
        "AscendC::DataCopy(g_.score_grads",
    ),
    Mutant(
        "slope sums overwritten while being stored",
        GROWS,
        "SetFlag<HardEvent::MTE3_V>(kSlopeSumSlot); WaitFlag<HardEvent::MTE3_V>(kSlopeSumSlot);",
        "",
    ),
    Mutant(
        "no barrier before the product of P and dP",
        GVEC,
        "AscendC::Exp(s, s, count); vector_barrier();",
        "AscendC::Exp(s, s, count);",
    ),
    Mutant(
        "sums grow without order",
        CUBE,
        "PipeBarrier<PIPE_FIX>();",
        "",
    ),
    Mutant(
        "sums overwritten instead of growing",
        CUBE,
        "AscendC::SetAtomicAdd<float>();",
        "",
    ),
    Mutant(
        "atomic addition left on",
        CUBE,
        "if (add) AscendC::SetAtomicNone();",
        "",
    ),
    Mutant(
        "first pair of a task adds too",
        GRAD,
        "const bool add = !at.first();",
        "const bool add = true;",
    ),
    Mutant(
        "operands of a task never released",
        GRAD,
        "if (at.last()) cube_.release(kFixedSlot);",
        "",
    ),
    Mutant(
        "operands of a pair released too early",
        GRAD,
        "if (at.last()) cube_.release(kFixedSlot);",
        "if (at.last()) cube_.release(kFixedSlot);\n    cube_.release(kMovingSlot + slot);",
    ),
    Mutant(
        "sums read before they are complete",
        GVEC,
        "if (any) AscendC::CrossCoreWaitFlag(kSumsReady);",
        "",
    ),
    Mutant(
        "sums announced by the wrong pipe",
        GRAD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kSumsReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_M>(kSumsReady)",
    ),
    Mutant(
        "tiles announced by the wrong pipe",
        GRAD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kTilesReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_M>(kTilesReady)",
    ),
    Mutant(
        "gradients announced by the wrong pipe",
        GVEC,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kGradsReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE2>(kGradsReady)",
    ),
    Mutant(
        "slots not reset between the phases",
        GVEC,
        "loaded_ = computed_ = 0;",
        "",
    ),
    Mutant(
        "the task before keeps its ramp",
        GVEC,
        "if (!new_ramp_ && slope == slope_) return;",
        "if (!new_ramp_) return;",
    ),
    Mutant(
        "unwritten columns enter the slope sum",
        GVEC,
        "if (key + kTileK > t_.len_k) fill_columns",
        "if (key > t_.len_k) fill_columns",
    ),
    Mutant(
        "keys and values outside the span loaded",
        GRAD,
        "const KeyRange seen = seen_keys(pair.task.span, pair.key_tile * kTileK);",
        "const KeyRange seen = {0, tiles.keys};",
    ),
    Mutant(
        "rows without keys not kept at weight 0",
        GVEC,
        "AscendC::Maxs(lse, lse, kNoMaximum, block.rows);",
        "",
    ),
    Mutant("delta left out", GVEC, "subtract_rows(dp, delta_blocks_, block.rows, kTileK);", ""),
    Mutant(
        "dk not scaled",
        GVEC,
        "store_sums(staging_, g_.dk[offset], g_.sums, t_.scale,",
        "store_sums(staging_, g_.dk[offset], g_.sums, 1.0f,",
    ),
    Mutant(
        "transposition forgotten",
        GRAD,
        "cube_.multiply({weights, rows, true}",
        "cube_.multiply({weights, rows, false}",
    ),
    Mutant(
        "only the first head of a group",
        PAIRS,
        "const int32_t head = key.head * (t_.heads_q / t_.heads_kv) + next_.inner / t_.tiles_q;",
        "const int32_t head = key.head * (t_.heads_q / t_.heads_kv);",
    ),
    Mutant(
        "sign of the slope gradient right of the diagonal",
        GROWS,
        "AscendC::Sub(x.total, x.total, x.moment, block.rows); }",
        "AscendC::Add(x.total, x.total, x.moment, block.rows); }",
    ),
    Mutant(
        "a task's slope sums run on",
        GVEC,
        "AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);",
        "if (index == core) AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);",
    ),
    Mutant(
        "UB overflow",
        GVEC,
        "InitBuffer(weight_grads_, kGradUbScores)",
        "InitBuffer(weight_grads_, 2 * kGradUbScores)",
    ),
)
