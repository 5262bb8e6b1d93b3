"""Numbers as options of the groups ``rank`` and ``ne``: rank=8, rank=16x4, ne=3, ne=0.25. Standard library only.

An option has one name, whatever its spelling (rank=16x4 is rank=r16_h4, ne=0.25 is ne=quarter), so that a run has one
folder. Options without a file in conf/ are made here.
"""

from __future__ import annotations

import re
from typing import Any

HEAD = 3
"""Rank per head where a number gives only the shared one."""
WARMUP = 0.1
SHARES = {0.5: "half", 0.25: "quarter"}
"""Shares of heads that have a name."""
WHOLE, SHARE = r"-?\d+", r"-?\d*\.\d+"
WORDS = {
    "rank": "a number (rank=8; with that per head rank=16x4)",
    "ne": "a number of heads (ne=3), or a share (ne=0.25)",
}
"""What the groups take besides their files."""


def name_of(group: str, text: str) -> str:
    """The name of an option that is given as a number; any other text as it is."""
    if group == "rank" and (match := re.fullmatch(rf"({WHOLE})(?:x({WHOLE}))?", text)):
        shared, head = match.groups()
        return f"r{int(shared)}" if head is None or int(head) == HEAD else f"r{int(shared)}_h{int(head)}"
    if group == "ne" and re.fullmatch(WHOLE, text):
        return f"ne{int(text)}"
    if group == "ne" and re.fullmatch(SHARE, text):
        return SHARES.get(float(text), f"ne{float(text)}")
    return text


def spelled(override: str) -> str:
    """An override with every number given for ``rank`` or ``ne`` replaced by the option's name.

    Numbers inside of a function, such as ``range(4,17,4)``, are Hydra's; what it makes of them is spelled later.
    """
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+") not in WORDS or "(" in value:
        return override
    return f"{key}={','.join(name_of(key.lstrip('+'), text.strip()) for text in value.split(','))}"


def option(group: str, name: str) -> dict[str, Any] | None:
    """What an option of ``rank`` or ``ne`` holds, None for a name that is no number."""
    name = name_of(group, name)
    if group == "rank" and (match := re.fullmatch(rf"r({WHOLE})(?:_h({WHOLE}))?", name)):
        return {"global": int(match[1]), "head": int(match[2] or HEAD)}
    if group == "ne" and (match := re.fullmatch(rf"ne({WHOLE})", name)):
        return {"count": int(match[1]), "ratio": None, "warmup": WARMUP}
    share = next((share for share, word in SHARES.items() if word == name), None)
    if group == "ne" and (share is not None or (match := re.fullmatch(rf"ne({SHARE})", name))):
        return {"count": None, "ratio": float(match[1]) if share is None and match else share, "warmup": WARMUP}
    return None
