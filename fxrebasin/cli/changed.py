"""What a fine-tuning changed besides numbers: tensors that the target's file does not have, or in another
shape."""
from __future__ import annotations

from torch import Tensor

from ..errors import StateError
from ..spec import Spec
from ..spec.fitting import Fitted
from ..spec.stacks import tied
from ..transport.mismatched import mismatched_names
from .file import Checkpoint
from .speech import note


def changed_by(spec: Spec, base: Checkpoint, finetuned: Checkpoint, target: Checkpoint,
               mismatched: str) -> dict[str, Tensor]:
    """Names in the target's file of such tensors -> their new shape, on the meta device."""
    return _untied(base, finetuned, target) | (_resized(spec, base, finetuned, target) if mismatched == "finetuned" else {})


def _untied(base: Checkpoint, finetuned: Checkpoint, target: Checkpoint) -> dict[str, Tensor]:
    """Tensors that the target's file leaves out, since they are tied, and one of the other two has apart."""
    apart = [
        alias
        for alias, name in target.fit.ties.items()
        for state in (base, finetuned)
        if alias not in state.fit.ties and name not in state.fit.ties and not tied(state[alias], state[name])
    ]
    return {target.fit.file_of(alias): finetuned[alias].to("meta") for alias in apart}


def _resized(spec: Spec, base: Checkpoint, finetuned: Checkpoint, target: Checkpoint) -> dict[str, Tensor]:
    """Tensors whose shape the fine-tuning changed. Raises StateError where the target's file has them in
    parts."""
    old, new = (dict(Fitted(each.fit, each.form.blank())) for each in (base, finetuned))
    found = {}
    for name in mismatched_names(spec, old, new, "finetuned"):
        link = target.fit.of.get(name)
        if link is not None and link.read is not None:
            raise StateError(f"{name!r} has another shape in the fine-tuned state, and lies in the target's file in parts "
                             "of other names: give --mismatched target")
        if link is not None:
            found[link.files[0]] = new[name]
            note(f"{link.files[0]!r} is written with the shape that it has in the fine-tuned state, "
                 f"{tuple(new[name].shape)}: TARGET's configuration does not say so")
    return found
