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

    def text(self, csrc: Path) -> str:
        """The file with the mistake."""
        pieces = (csrc / "cuda" / self.file).read_text().split(self.old)
        assert len(pieces) > self.nth + 1, f"{self.what}: {self.old!r} is not in {self.file}"
        head, tail = pieces[: self.nth + 1], pieces[self.nth + 1 :]
        return self.old.join(head) + self.new + self.old.join(tail)

    def apply(self, csrc: Path) -> None:
        text = self.text(csrc)
        (csrc / "cuda" / self.file).write_text(text)
