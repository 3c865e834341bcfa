"""The mutants of the weights op and of its gradient; mutants.py explains the columns."""

from __future__ import annotations

from tests.ascend.mutants import WEIGHTS, WGRAD, Mutant

WEIGHTS_FORWARD = (
    Mutant(
        "scores loaded by the vector cores announced by the wrong pipe",
        WEIGHTS,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE2>(kScoresTaken)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_V>(kScoresTaken)",
    ),
    Mutant(
        "scores announced by the wrong pipe",
        WEIGHTS,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kScoresReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_M>(kScoresReady)",
    ),
    Mutant(
        "scores multiplied over scores in use",
        WEIGHTS,
        "if (n >= kSlots) AscendC::CrossCoreWaitFlag(kScoresTaken);",
        "",
    ),
    Mutant(
        "scores multiplied one tile too early",
        WEIGHTS,
        "if (n >= kSlots) AscendC::CrossCoreWaitFlag(kScoresTaken);",
        "if (n > kSlots) AscendC::CrossCoreWaitFlag(kScoresTaken);",
    ),
    Mutant(
        "last flags of the vector cores left over",
        WEIGHTS,
        "for (int32_t i = 0; i < min_of(n, kSlots); ++i) AscendC::CrossCoreWaitFlag(kScoresTaken);",
        "",
    ),
    Mutant(
        "a core without rows takes no part",
        WEIGHTS,
        "AscendC::CrossCoreWaitFlag(kScoresReady); if (block.rows > 0) {",
        "AscendC::CrossCoreWaitFlag(kScoresReady);\n    if (block.rows == 0) return;\n    {",
    ),
    Mutant(
        "flag out of range",
        WEIGHTS,
        "constexpr uint16_t kScoresTaken = 1;",
        "constexpr uint16_t kScoresTaken = 16;",
    ),
    Mutant(
        "scores used before they are loaded",
        WEIGHTS,
        "WaitFlag<HardEvent::MTE2_V>(slot); AscendC::Muls",
        "AscendC::Muls",
    ),
    Mutant(
        "scores loaded over scores in use",
        WEIGHTS,
        "WaitFlag<HardEvent::V_MTE2>(slot); AscendC::DataCopy(score_tile",
        "AscendC::DataCopy(score_tile",
    ),
    Mutant(
        "scores given back before they are summed",
        WEIGHTS,
        "row_sum(rows_.tile_sum, s, rows_.scratch, block.rows); SetFlag<HardEvent::V_MTE2>(slot);",
        "SetFlag<HardEvent::V_MTE2>(slot);\n    row_sum(rows_.tile_sum, s, "
        "rows_.scratch, block.rows);",
    ),
    Mutant(
        "weights stored before they are rounded",
        WEIGHTS,
        "SetFlag<HardEvent::V_MTE3>(slot); WaitFlag<HardEvent::V_MTE3>(slot);",
        "",
    ),
    Mutant(
        "weights overwritten while being stored",
        WEIGHTS,
        "WaitFlag<HardEvent::MTE3_V>(slot); AscendC::Cast",
        "AscendC::Cast",
    ),
    Mutant(
        "zeros stored before they are there",
        WEIGHTS,
        "SetFlag<HardEvent::V_MTE3>(kZeros); WaitFlag<HardEvent::V_MTE3>(kZeros);",
        "",
    ),
    Mutant(
        "no barrier before the row values are spread",
        WEIGHTS,
        "AscendC::Sub(rows_.row_bias, stat(kLse), rows_.row_bias, block.rows); vector_barrier();",
        "AscendC::Sub(rows_.row_bias, stat(kLse), rows_.row_bias, block.rows);",
    ),
    Mutant(
        "query tiles never released",
        WEIGHTS,
        "cube_.release(kQuerySlot + query);",
        "",
    ),
    Mutant(
        "UB overflow",
        WEIGHTS,
        "InitBuffer(zeros_, kWeightsUbZeros)",
        "InitBuffer(zeros_, 5 * kWeightsUbZeros)",
    ),
    Mutant(
        "tiles that no row sees left unwritten",
        WEIGHTS,
        "if (tile < task.tiles.first || tile >= task.tiles.end)",
        "if (tile < task.tiles.first)",
    ),
    Mutant(
        "one pass only",
        WEIGHTS,
        "constexpr int32_t kPasses = 2;",
        "constexpr int32_t kPasses = 1;",
    ),
    Mutant(
        "maximum left out of the log of the sum",
        WEIGHTS,
        "AscendC::Add(stat(kLse), stat(kLse), rows_.maximum, block.rows);",
        "",
    ),
    Mutant(
        "log of the sum never taken",
        WEIGHTS,
        "if (i == tiles) finish_rows(block);",
        "",
    ),
    Mutant(
        "rows of P packed",
        WEIGHTS,
        "t_.len_k * kHalfBytes - bytes, 0)",
        "0, 0)",
    ),
    Mutant(
        "wrong key head",
        WEIGHTS,
        "task.head / (t_.heads_q / t_.heads_kv) * t_.kv.head",
        "task.head % t_.heads_kv * t_.kv.head",
    ),
    Mutant(
        "scale left out",
        WEIGHTS,
        "AscendC::Muls(s, s, t_.scale,",
        "AscendC::Muls(s, s, 1.0f,",
    ),
)

WEIGHTS_BACKWARD = (
    Mutant(
        "row sums read before the other cores have left theirs",
        WGRAD,
        "AscendC::CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kRowSumsReady); "
        "AscendC::CrossCoreWaitFlag(kRowSumsReady);",
        "",
    ),
    Mutant(
        "row sums announced by the pipe that loads",
        WGRAD,
        "CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kRowSumsReady)",
        "CrossCoreSetFlag<kAllVectors, PIPE_MTE2>(kRowSumsReady)",
        harmless="after it stored its row sums, a core loads the sums of dq behind V, which has "
        "waited for the store, so MTE2 announces no earlier than MTE3 would",
    ),
    Mutant(
        "row sums announced and not waited for",
        WGRAD,
        "AscendC::CrossCoreWaitFlag(kRowSumsReady);",
        "",
    ),
    Mutant(
        "only the vector cores of one AI Core meet",
        WGRAD,
        "constexpr uint8_t kAllVectors = 0;",
        "constexpr uint8_t kAllVectors = 1;",
    ),
    Mutant(
        "dS announced by the wrong pipe",
        WGRAD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kGradsReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_V>(kGradsReady)",
    ),
    Mutant(
        "dS loaded by the cube core announced by the wrong pipe",
        WGRAD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE2>(kGradsTaken)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE1>(kGradsTaken)",
    ),
    Mutant(
        "sums announced by the wrong pipe",
        WGRAD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kSumsReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_M>(kSumsReady)",
    ),
    Mutant(
        "dS loaded before it is there",
        WGRAD,
        "AscendC::CrossCoreWaitFlag(kGradsReady);",
        "",
    ),
    Mutant(
        "dS stored over dS in use",
        WGRAD,
        "if (stored_ >= kSlots) AscendC::CrossCoreWaitFlag(kGradsTaken);",
        "",
    ),
    Mutant(
        "dS stored one pair too early",
        WGRAD,
        "if (stored_ >= kSlots) AscendC::CrossCoreWaitFlag(kGradsTaken);",
        "if (stored_ > kSlots) AscendC::CrossCoreWaitFlag(kGradsTaken);",
    ),
    Mutant(
        "last flags of the cube core left over",
        WGRAD,
        "for (int32_t i = 0; i < min_of(stored_, kSlots); ++i) "
        "AscendC::CrossCoreWaitFlag(kGradsTaken);",
        "",
    ),
    Mutant(
        "sums of queries read before they are complete",
        WGRAD,
        "if (tiles > 0) AscendC::CrossCoreWaitFlag(kSumsReady);",
        "",
    ),
    Mutant(
        "sums of keys read before they are complete",
        WGRAD,
        "if (any) AscendC::CrossCoreWaitFlag(kSumsReady);",
        "",
    ),
    Mutant(
        "tiles used before they are loaded",
        WGRAD,
        "WaitFlag<HardEvent::MTE2_V>(slot); AscendC::Cast",
        "AscendC::Cast",
    ),
    Mutant(
        "tiles loaded over tiles in use",
        WGRAD,
        "WaitFlag<HardEvent::V_MTE2>(slot); AscendC::DataCopyPad",
        "AscendC::DataCopyPad",
    ),
    Mutant(
        "row sums loaded over row sums in use",
        WGRAD,
        "convert(block, key, slot); spread(blocks_, row_sum, block.rows); "
        "vector_barrier(); SetFlag<HardEvent::V_MTE2>(slot);",
        "convert(block, key, slot);\n      SetFlag<HardEvent::V_MTE2>(slot);\n      "
        "spread(blocks_, row_sum, block.rows);\n      vector_barrier();",
    ),
    Mutant(
        "dS rounded over dS being stored",
        WGRAD,
        "WaitFlag<HardEvent::MTE3_V>(kStoreSlot); AscendC::Cast(ds_",
        "AscendC::Cast(ds_",
    ),
    Mutant(
        "dS stored before it is rounded",
        WGRAD,
        "SetFlag<HardEvent::V_MTE3>(kStoreSlot); WaitFlag<HardEvent::V_MTE3>(kStoreSlot);",
        "",
    ),
    Mutant(
        "row sums stored before they are complete",
        WGRAD,
        "SetFlag<HardEvent::V_MTE3>(kRowSumSlot); WaitFlag<HardEvent::V_MTE3>(kRowSumSlot);",
        "",
    ),
    Mutant(
        "row sums overwritten while being stored",
        WGRAD,
        "SetFlag<HardEvent::MTE3_V>(kRowSumSlot); WaitFlag<HardEvent::MTE3_V>(kRowSumSlot);",
        "",
        harmless="before the row sums of the next task V waits for the store of the slope sums, "
        "which follows on the same pipe",
    ),
    Mutant(
        "row sums of a core without rows zeroed under a load",
        WGRAD,
        "if (block.rows > 0) { AscendC::Duplicate(stat(kSlopeSum)",
        "{\n      AscendC::Duplicate(stat(kSlopeSum)",
    ),
    Mutant(
        "unwritten columns enter the sums",
        WGRAD,
        "fill_columns(p_, 0.0f, seen.end, kTileK, block.rows);",
        "",
    ),
    Mutant(
        "gradients before the span enter the sums",
        WGRAD,
        "fill_columns(dp_, 0.0f, 0, seen.first, block.rows);",
        "",
    ),
    Mutant(
        "gradients behind the span enter the sums",
        WGRAD,
        "fill_columns(dp_, 0.0f, seen.end, kTileK, block.rows);",
        "",
    ),
    Mutant(
        "columns before and behind the span cleared at once",
        WGRAD,
        "fill_columns(dp_, 0.0f, 0, seen.first, block.rows); vector_barrier();",
        "fill_columns(dp_, 0.0f, 0, seen.first, block.rows);",
    ),
    Mutant(
        "keys outside the span loaded",
        WGRAD,
        "seen_keys(task.span, pair.key_tile * kTileK), keys,",
        "{0, keys}, keys,",
    ),
    Mutant(
        "row sums left out",
        WGRAD,
        "subtract_rows(dp_, blocks_, block.rows, kTileK);",
        "",
    ),
    Mutant(
        "first pair of a query tile adds too",
        WGRAD,
        "rows, t_.head_dim, keys, g_.sums, width_, !at.first()",
        "rows, t_.head_dim, keys, g_.sums, width_, true",
    ),
    Mutant(
        "every pair of a key tile starts anew",
        WGRAD,
        "keys, t_.head_dim, rows, g_.sums, width_, !at.first()",
        "keys, t_.head_dim, rows, g_.sums, width_, false",
    ),
    Mutant(
        "transposition forgotten",
        WGRAD,
        "round_up(rows, kFractal), phase == Phase::kKeys}",
        "round_up(rows, kFractal), false}",
    ),
    Mutant(
        "row sums of the first query tile for all",
        WGRAD,
        "* t_.tiles_q + task.row / kTileQ;",
        "* t_.tiles_q;",
    ),
    Mutant(
        "dk not scaled",
        WGRAD,
        "g_.sums, t_.scale, rows, t_.kv.row, any)",
        "g_.sums, 1.0f, rows, t_.kv.row, any)",
    ),
    Mutant(
        "a task's slope sums run on",
        WGRAD,
        "AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);",
        "if (index == 0) AscendC::Duplicate(stat(kSlopeSum), 0.0f, kRows);",
    ),
    Mutant(
        "operands never released",
        WGRAD,
        "cube_.release(slot);",
        "",
    ),
    Mutant(
        "operands overwritten while in use",
        WGRAD,
        "cube_.acquire(slot);",
        "",
    ),
    Mutant(
        "UB overflow",
        WGRAD,
        "InitBuffer(loads_, kWeightsGradUbLoads)",
        "InitBuffer(loads_, 2 * kWeightsGradUbLoads)",
    ),
)
