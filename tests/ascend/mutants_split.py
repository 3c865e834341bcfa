"""The mutants of splitting the keys over AI Cores; mutants.py explains the columns."""

from __future__ import annotations

from tests.ascend.mutants import FWD, TASKS, Mutant

SPLIT = (
    Mutant(
        "parts combined before the other cores have left theirs",
        FWD,
        "AscendC::CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kPartsReady); "
        "AscendC::CrossCoreWaitFlag(kPartsReady);",
        "",
    ),
    Mutant(
        "parts announced by the wrong pipe",
        FWD,
        "CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kPartsReady)",
        "CrossCoreSetFlag<kAllVectors, PIPE_V>(kPartsReady)",
        harmless="a part ends with V waiting for its store (the flag MTE3_V of store_part), so V "
        "announces no earlier than MTE3 would",
    ),
    Mutant(
        "parts announced by the pipe that loads",
        FWD,
        "CrossCoreSetFlag<kAllVectors, PIPE_MTE3>(kPartsReady)",
        "CrossCoreSetFlag<kAllVectors, PIPE_MTE2>(kPartsReady)",
    ),
    Mutant(
        "only the vector cores of one AI Core meet",
        FWD,
        "constexpr uint8_t kAllVectors = 0;",
        "constexpr uint8_t kAllVectors = 1;",
    ),
    Mutant(
        "parts announced and not waited for",
        FWD,
        "AscendC::CrossCoreWaitFlag(kPartsReady);",
        "",
    ),
    Mutant(
        "a flag of the tiles used for the parts too",
        FWD,
        "constexpr uint16_t kPartsReady = 3;",
        "constexpr uint16_t kPartsReady = 2;",
        harmless="every product has been waited for when the parts are announced, so the counter "
        "is free",
    ),
    Mutant(
        "part stored before it is complete",
        FWD,
        "SetFlag<HardEvent::V_MTE3>(kResultSlot); WaitFlag<HardEvent::V_MTE3>(kResultSlot); "
        "AscendC::DataCopy(part",
        "AscendC::DataCopy(part",
    ),
    Mutant(
        "part overwritten while being stored",
        FWD,
        "SetFlag<HardEvent::MTE3_V>(kResultSlot); WaitFlag<HardEvent::MTE3_V>(kResultSlot); } "
        "// One query tile",
        "} // One query tile",
        harmless="an AI Core has at most one part (choose_parts), and the meeting lies between its "
        "store and the combining",
    ),
    Mutant(
        "statistics of a part used before they are loaded",
        FWD,
        "SetFlag<HardEvent::MTE2_V>(kSlopesSlot); WaitFlag<HardEvent::MTE2_V>(kSlopesSlot); "
        "AscendC::Adds",
        "AscendC::Adds",
    ),
    Mutant(
        "statistics of a part loaded over those in use",
        FWD,
        "SetFlag<HardEvent::V_MTE2>(kSlopesSlot); WaitFlag<HardEvent::V_MTE2>(kSlopesSlot); "
        "AscendC::DataCopy(stat(kRowBias)",
        "AscendC::DataCopy(stat(kRowBias)",
    ),
    Mutant(
        "parts added without their weight",
        FWD,
        "accumulate(part(i)[half_rows()], block.rows, true);",
        "accumulate(part(i)[half_rows()], block.rows, false);",
    ),
    Mutant(
        "sums of the parts added without their weight",
        FWD,
        "AscendC::Mul(stat(kTile), stat(kTile), weight, block.rows);",
        "",
    ),
    Mutant(
        "both vector cores leave their statistics in one place",
        FWD,
        "return int64_t{kTileQ} * width_ + AscendC::GetSubBlockIdx() * kRows;",
        "return int64_t{kTileQ} * width_;",
    ),
    Mutant(
        "a part too short",
        "tiling.h",
        "range.first + tiles * (part + 1) / parts",
        "range.first + tiles * (part + 1) / (parts + 1)",
    ),
    Mutant(
        "every part takes all key tiles",
        TASKS,
        "index % tiling_.parts, tiling_.parts)",
        "0, 1)",
    ),
)
