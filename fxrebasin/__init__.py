"""fxrebasin: permutation symmetries of neural networks, and what can be carried along them."""

from .alignment import Alignment
from .capture import capture
from .errors import (CaptureError, CheckpointError, FxrebasinError, NotEquivalentError, SpecError, StateError)
from .infer import infer
from .match import match, match_many, merge
from .spec import Group, Site, Spec
from .transport import task_vector, transport
from .verify import Evidence, find_equivalence, verify

__version__ = "0.1.0"

__all__ = ["Alignment", "CaptureError", "CheckpointError", "Evidence", "FxrebasinError", "Group", "NotEquivalentError",
           "Site", "Spec", "SpecError", "StateError", "capture", "find_equivalence", "infer", "match", "match_many", "merge", "task_vector",
           "transport", "verify"]
