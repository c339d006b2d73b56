"""What is wrong with a checkpoint, grouped so that 69,000 bad names still fit on a page and no kind is hidden."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MAX_GROUPS_PER_KIND = 50
_MAX_NAME_CHARACTERS = 120
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole component of a dotted name


@dataclass(slots=True)
class _Group:
    first: str
    count: int = 0


@dataclass(slots=True)
class Findings:
    """Collects findings by kind; `lines()` prints each kind, grouped by name pattern and detail."""

    groups: dict[str, dict[tuple[str, str], _Group]] = field(default_factory=dict)

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Record one finding. `kind` reads as the start of a sentence, `detail` as its end."""
        name = printable(name)
        key = (_NUMBER.sub("*", name), detail)
        group = self.groups.setdefault(kind, {}).setdefault(key, _Group(first=name))
        group.count += 1

    def lines(self) -> list[str]:
        """Return one line per kind and pattern; what exceeds the limit of a kind is counted on its last line."""
        lines = []
        for kind, groups in self.groups.items():
            shown = list(groups.items())[:_MAX_GROUPS_PER_KIND]
            for (pattern, detail), group in shown:
                end = f": {detail}" if detail else ""
                if group.count == 1:
                    lines.append(f"{kind} {group.first}{end}")
                else:
                    lines.append(f"{kind} {pattern} ({group.count:,} of them, first {group.first}){end}")
            hidden = list(groups.values())[_MAX_GROUPS_PER_KIND:]
            if hidden:
                count = sum(group.count for group in hidden)
                lines.append(f"{kind} … {len(hidden):,} more patterns, {count:,} more findings")
        return lines


def printable(name: str) -> str:
    """Return a name as it may stand in a message: one line, bounded, control characters escaped."""
    if len(name) > _MAX_NAME_CHARACTERS:
        name = name[:_MAX_NAME_CHARACTERS] + "…"
    return name if name.isprintable() else ascii(name)
