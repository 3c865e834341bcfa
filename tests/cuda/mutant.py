"""One mistake in the kernels: what is replaced, and what is compiled and run to see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNITS = {
    "forward": "sm80/forward.cu",
    "decode": "sm80/decode.cu",
    "backward": "sm80/backward.cu",
    "weights": "sm80/weights.cu",
    "hopper": "sm90/forward.cu",
    "hopper-backward": "sm90/backward.cu",
}


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    nth: int = 0  # which occurrence of `old`
    part: str = "forward"  # what is compiled and run: a key of UNITS
    equal: str = ""  # why no result can change

    def apply(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        pieces = path.read_text().split(self.old)
        assert len(pieces) > self.nth + 1, f"{self.what}: {self.old!r} is not in {self.file}"
        head, tail = pieces[: self.nth + 1], pieces[self.nth + 1 :]
        path.write_text(self.old.join(head) + self.new + self.old.join(tail))
