"""Transport: a fine-tuning of the old base becomes one of the new base.

To be read in this order:

    task_vector    what the fine-tuning changed, and target + alpha * pi(of it)
    arithmetic     several task vectors with weights, and an alpha for each tensor
    mismatched     tensors whose shape the fine-tuning changed
    pair           whether the states are those that the alignment is for
    by_part        the same for states that are too large to be held
    adapter        what a LoRA adds to a state, and merging it
    carry_adapter  the adapter of the target, of the same rank
    samples        unlabelled inputs: checked, counted, mixed
    outputs        a module as a function of its state, and how far its outputs are from those wanted
    gains          how much of a carried task vector is used
    fit, head      what is fitted to the inputs: gains, all weights; the last linear map
    calibrate      a carried task vector and a handful of inputs become the fine-tuned function
    alpha          how much of it to add, by agreement on inputs
    published/     other ways to carry a task vector over, under the names of their papers
    probes         inputs where there are none
"""
from .adapter import Adapter, Merged, merge_adapter
from .alpha import Alpha, choose_alpha
from .arithmetic import Alphas, WeightedSum
from .by_part import transported
from .calibrate import Calibration, calibrate
from .carry_adapter import transport_adapter
from .gains import Gains
from .probes import Probes, probes
from .published import carry
from .task_vector import State, TransportNote, task_vector, transport

__all__ = ["Adapter", "Alpha", "Alphas", "Calibration", "Gains", "Merged", "Probes", "State", "TransportNote",
           "WeightedSum", "calibrate", "carry", "choose_alpha", "merge_adapter", "probes", "task_vector",
           "transport", "transport_adapter", "transported"]
