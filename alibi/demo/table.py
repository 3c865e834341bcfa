"""A small table that prints itself, for a terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows under column names; cells are text, ready to print.

    Args:
        title: a sentence that says what was measured and how.
        columns: their names.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Appends a row.

        Raises:
            ValueError: there are more or fewer cells than columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"a row must have {len(self.columns)} cells, but got {len(cells)}.")
        self.rows.append(cells)

    def as_dicts(self) -> list[dict[str, str]]:
        """Returns every row as column -> cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def text(self) -> str:
        """Returns the table for a terminal: the first column to the left, numbers to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        rule = tuple("-" * width for width in widths)
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [self.columns, rule, *self.rows]
        )

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        align = ("---", *["--:"] * (len(self.columns) - 1))
        return "\n".join(f"| {' | '.join(line)} |" for line in [self.columns, align, *self.rows])
