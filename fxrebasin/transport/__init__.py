"""Transport: a fine-tuning of the old base becomes one of the new base.

To be read in this order:

    task_vector    what the fine-tuning changed, and target + alpha * pi(of it)
    adapter        what a LoRA adds to a state, and merging it
    carry_adapter  the adapter of the target, of the same rank
"""
from .adapter import Adapter, merge_adapter
from .carry_adapter import transport_adapter
from .task_vector import State, task_vector, transport

__all__ = ["Adapter", "State", "merge_adapter", "task_vector", "transport", "transport_adapter"]
