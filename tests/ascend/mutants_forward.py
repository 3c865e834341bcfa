"""The mutants of the forward kernel and of what the backward shares (columns: mutants.py)."""

from __future__ import annotations

from tests.ascend.mutants import BIAS, CUBE, FWD, ROWS, SOFTMAX, TASKS, Mutant

FORWARD = (
    # Synchronisation inside a core.
    Mutant(
        "weights stored before they are rounded",
        FWD,
        "SetFlag<HardEvent::V_MTE3>(kWeightsSlot); WaitFlag<HardEvent::V_MTE3>(kWeightsSlot);",
        "",
    ),
    Mutant(
        "weights overwritten while being stored",
        FWD,
        "WaitFlag<HardEvent::MTE3_V>(kWeightsSlot); add_bias",
        "add_bias",
    ),
    Mutant(
        "scores used before they are loaded",
        FWD,
        "WaitFlag<HardEvent::MTE2_V>(kScoreSlot + slot); AscendC::Muls",
        "AscendC::Muls",
    ),
    Mutant(
        "scores loaded over scores in use",
        FWD,
        "WaitFlag<HardEvent::V_MTE2>(kScoreSlot + slot); AscendC::DataCopy(score_tile",
        "AscendC::DataCopy(score_tile",
    ),
    Mutant(
        "no barrier after the exponential",
        SOFTMAX,
        "AscendC::Exp(s, s, rows * kTileK); vector_barrier();",
        "AscendC::Exp(s, s, rows * kTileK);",
    ),
    Mutant(
        "no barrier between subtract and exponential",
        SOFTMAX,
        "subtract_rows(s, blocks, rows, kTileK); vector_barrier();",
        "subtract_rows(s, blocks, rows, kTileK);",
    ),
    Mutant(
        "no barrier inside the row maximum",
        ROWS,
        "vector_barrier(); AscendC::Max(result, result, other, rows);",
        "AscendC::Max(result, result, other, rows);",
    ),
    Mutant("no vector barriers at all", ROWS, "{ PipeBarrier<PIPE_V>(); }", "{}"),
    Mutant(
        "wrong event id for the product",
        FWD,
        "WaitFlag<HardEvent::MTE2_V>(kProductSlot);",
        "WaitFlag<HardEvent::MTE2_V>(kProductSlot + 1);",
    ),
    Mutant(
        "output staged in a slot that loads still own",
        FWD,
        "WaitFlag<HardEvent::V_MTE2>(kScoreSlot); "
        "SetFlag<HardEvent::MTE2_V>(kScoreSlot); WaitFlag<HardEvent::MTE2_V>(kScoreSlot);",
        "",
    ),
    Mutant(
        "output stored before it is rounded",
        FWD,
        "SetFlag<HardEvent::V_MTE3>(kResultSlot); WaitFlag<HardEvent::V_MTE3>(kResultSlot); "
        "const uint32_t",
        "const uint32_t",
    ),
    Mutant(
        "staging reused while being stored",
        FWD,
        "SetFlag<HardEvent::MTE3_V>(kResultSlot); WaitFlag<HardEvent::MTE3_V>(kResultSlot); "
        "SetFlag<HardEvent::V_MTE2>(kScoreSlot);",
        "SetFlag<HardEvent::V_MTE2>(kScoreSlot);",
    ),
    Mutant(
        "event id that belongs to TPipe",
        CUBE,
        "constexpr int32_t kL0Event = 3;",
        "constexpr int32_t kL0Event = 2;",
    ),
    Mutant(
        "event id out of range",
        CUBE,
        "constexpr int32_t kL0Event = 3;",
        "constexpr int32_t kL0Event = 7;",
    ),
    Mutant(
        "L1 used before it is loaded",
        CUBE,
        "use(int32_t slot) { WaitFlag<HardEvent::MTE2_MTE1>(slot); }",
        "use(int32_t) {}",
    ),
    Mutant(
        "L1 overwritten while in use",
        CUBE,
        "acquire(int32_t slot) { WaitFlag<HardEvent::MTE1_MTE2>(slot); }",
        "acquire(int32_t) {}",
    ),
    Mutant(
        "L0 multiplied before it is loaded",
        CUBE,
        "SetFlag<HardEvent::MTE1_M>(l0_slot_); WaitFlag<HardEvent::MTE1_M>(l0_slot_);",
        "",
    ),
    Mutant(
        "L0C stored before it is complete",
        CUBE,
        "SetFlag<HardEvent::M_FIX>(c_slot_); WaitFlag<HardEvent::M_FIX>(c_slot_);",
        "",
    ),
    Mutant(
        "small products accumulate unordered",
        CUBE,
        "constexpr int32_t kOrderedFractals = 10;",
        "constexpr int32_t kOrderedFractals = 0;",
    ),
    Mutant(
        "keys never released",
        FWD,
        "cube_.release(kKeySlot + slot);",
        "",
    ),
    # Synchronisation between cores.
    Mutant(
        "scores announced by the wrong pipe",
        FWD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kScoresReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE1>(kScoresReady)",
    ),
    Mutant(
        "product announced by the wrong pipe",
        FWD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_FIX>(kProductReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_M>(kProductReady)",
    ),
    Mutant(
        "weights announced by the wrong pipe",
        FWD,
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kWeightsReady)",
        "CrossCoreSetFlag<kCubeAndVectors, PIPE_V>(kWeightsReady)",
    ),
    Mutant(
        "vector cores synchronise among themselves only",
        FWD,
        "constexpr uint8_t kCubeAndVectors = 2;",
        "constexpr uint8_t kCubeAndVectors = 1;",
    ),
    Mutant(
        "flag out of range",
        FWD,
        "constexpr uint16_t kProductReady = 2;",
        "constexpr uint16_t kProductReady = 16;",
    ),
    Mutant(
        "two flags share an id",
        FWD,
        "constexpr uint16_t kProductReady = 2;",
        "constexpr uint16_t kProductReady = 0;",
    ),
    Mutant(
        "an idle vector core stays silent",
        FWD,
        "AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kWeightsReady);",
        "if (block.rows > 0) AscendC::CrossCoreSetFlag<kCubeAndVectors, PIPE_MTE3>(kWeightsReady);",
    ),
    Mutant(
        "cube core three tiles ahead",
        FWD,
        "for (; scored < kSlots && ahead.valid();",
        "for (; scored < kSlots + 1 && ahead.valid();",
    ),
    Mutant(
        "product multiplied before the weights arrive",
        FWD,
        "AscendC::CrossCoreWaitFlag(kWeightsReady);",
        "",
    ),
    # Memory: capacity, alignment, limits.
    Mutant(
        "UB overflow",
        FWD,
        "pipe->InitBuffer(acc_, kFwdUbOut);",
        "pipe->InitBuffer(acc_, 2 * kFwdUbOut);",
    ),
    Mutant(
        "buffer too small",
        FWD,
        "pipe->InitBuffer(weights_, kFwdUbWeights);",
        "pipe->InitBuffer(weights_, kFwdUbWeights / 2);",
    ),
    Mutant(
        "misaligned statistics",
        FWD,
        "stats_.template Get<float>()[row * kRows]",
        "stats_.template Get<float>()[row * kRows + 1]",
    ),
    Mutant(
        "L0C slots misaligned",
        CUBE,
        "[c_slot_ * kStep * kStep]",
        "[c_slot_ * (kStep * kStep + 16)]",
    ),
    Mutant(
        "128 lanes",
        ROWS,
        "constexpr int32_t kLanes = 64;",
        "constexpr int32_t kLanes = 128;",
    ),
    Mutant(
        "zero repeats for a single row",
        ROWS,
        "(rows + kBlockFloats - 1) / kBlockFloats",
        "rows / kBlockFloats",
    ),
    Mutant(
        "store width no multiple of a fractal",
        CUBE,
        "params.nSize = round_up(width, kFractal);",
        "params.nSize = width;",
    ),
    Mutant(
        "rows of a tile not rounded up",
        CUBE,
        "params.dstNzC0Stride = round_up(height, kFractal);",
        "params.dstNzC0Stride = height;",
    ),
    Mutant(
        "a single row enters the vector form of the product",
        CUBE,
        "params.m = max_of(m, 2);",
        "params.m = m;",
    ),
    Mutant(
        "second row of a single-row product never loaded",
        CUBE,
        "if (rows == 1) copy(l1[kFractal], source, rows, cols, stride, rows);",
        "",
    ),
    Mutant(
        "rows past the end loaded",
        TASKS,
        "task.rows = min_of(kTileQ, tiling_.len_q - task.row);",
        "task.rows = kTileQ;",
    ),
    # Arithmetic.
    Mutant("scale left out", FWD, "AscendC::Muls(s, s, t_.scale,", "AscendC::Muls(s, s, 1.0f,"),
    Mutant(
        "ramp of the wrong side",
        BIAS,
        "const bool left = side == Side::kLeft;",
        "const bool left = side != Side::kLeft;",
    ),
    Mutant(
        "sign of the row constant right of the diagonal",
        BIAS,
        "AscendC::Muls(row_bias, row_bias, -1.0f, block.rows);",
        "AscendC::Muls(row_bias, row_bias, 1.0f, block.rows);",
    ),
    Mutant(
        "diagonal excluded",
        BIAS,
        "const int32_t visible = block.position + r * t.row_step + 1 - key;",
        "const int32_t visible = block.position + r * t.row_step - key;",
    ),
    Mutant(
        "mask one lane short",
        ROWS,
        "(~0ull >> (kLanes - high))",
        "(~0ull >> (kLanes - high)) >> 1",
    ),
    Mutant(
        "end of the keys ignored",
        BIAS,
        "if (end < kTileK) {",
        "if (end < 0) {",
    ),
    Mutant("start of the keys ignored", BIAS, "if (begin > 0)", "if (begin > kTileK)"),
    Mutant(
        "last row of a tile does not see its diagonal tile",
        "tiling.h",
        "high = min_of(high, last_position + 1);",
        "high = min_of(high, last_position);",
    ),
    Mutant(
        "anchor not taken out of lse",
        FWD,
        "AscendC::Add(lse, lse, stat(kScratch), block.rows);",
        "",
    ),
    Mutant(
        "heads as rows keep a position each",
        BIAS,
        "static_cast<float>(-row_step)",
        "-1.0f * (row_step + 1)",
    ),
    Mutant(
        "slopes of the heads used before they are loaded",
        FWD,
        "SetFlag<HardEvent::MTE2_V>(kSlopesSlot); WaitFlag<HardEvent::MTE2_V>(kSlopesSlot); }",
        "}",
    ),
    Mutant(
        "slopes of the heads loaded over those in use",
        FWD,
        "} else { SetFlag<HardEvent::V_MTE2>(kSlopesSlot); "
        "WaitFlag<HardEvent::V_MTE2>(kSlopesSlot);",
        "} else {",
    ),
    Mutant(
        "masked scores as large as the empty maximum",
        ROWS,
        "constexpr float kMasked = -3.0e38f;",
        "constexpr float kMasked = -1.0e30f;",
    ),
    Mutant(
        "empty rows divide by zero",
        SOFTMAX,
        "AscendC::Maxs(r.sum, r.sum, 1.0e-30f, rows);",
        "AscendC::Maxs(r.sum, r.sum, 0.0f, rows);",
    ),
    Mutant(
        "lse of empty rows finite",
        FWD,
        "if (blind > 0) AscendC::Duplicate(lse, -__builtin_huge_valf(), blind);",
        "(void)blind;",
    ),
    Mutant(
        "factor of the wrong tile",
        FWD,
        "spread(blocks_, stat(kFactor + slot), block.rows);",
        "spread(blocks_, stat(kFactor + 1 - slot), block.rows);",
    ),
    Mutant(
        "sum not rescaled",
        SOFTMAX,
        "AscendC::Mul(r.sum, r.sum, factor, rows);",
        "(void)factor;",
    ),
    Mutant(
        "wrong key head",
        FWD,
        "task.head / (t_.heads_q / t_.heads_kv) * t_.kv.head",
        "task.head % t_.heads_kv * t_.kv.head",
    ),
    Mutant(
        "accumulation restarts",
        CUBE,
        "params.cmatrixInitVal = k0 == 0;",
        "params.cmatrixInitVal = true;",
    ),
    # Nothing to see.
    Mutant(
        "one L0C buffer instead of two",
        CUBE,
        "c_slot_ ^= 1;",
        "",
        harmless="the flags of slot 0 still order everything; only the overlap is lost",
    ),
    Mutant(
        "keys loaded after the weights arrived",
        FWD,
        "if (ahead.valid()) load_keys(ahead, scored % kSlots); "
        "AscendC::CrossCoreWaitFlag(kWeightsReady);",
        "AscendC::CrossCoreWaitFlag(kWeightsReady); if (ahead.valid()) "
        "load_keys(ahead, scored % kSlots);",
        harmless="a prefetch that comes later is slower, not wrong",
    ),
)
