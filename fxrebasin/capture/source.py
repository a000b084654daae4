"""What a placeholder of a captured graph stands for."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """What a placeholder or `get_attr` node stands for; `value`: content of a constant, None if unknown."""
    kind: Literal["state", "constant", "input"]
    name: str
    value: Tensor | None = None
