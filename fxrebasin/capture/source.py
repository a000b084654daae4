"""What a placeholder of a captured graph stands for."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """What a placeholder or `get_attr` node stands for.

    value  content of a constant, None if unknown
    valid  when a constant has this content: "always"; in the "first call", since forward writes to it; or in
           "this state", since it was made of numbers that Python read from tensors of the state
    """
    kind: Literal["state", "constant", "input"]
    name: str
    value: Tensor | None = None
    valid: Literal["always", "first call", "this state"] = "always"

    @property
    def content(self) -> Tensor | None:
        """The content that a constant has whatever the state and the call; None if there is no such thing."""
        return self.value if self.valid == "always" else None
