"""Transport: a fine-tuning of the old base becomes one of the new base.

To be read in this order:

    task_vector  what the fine-tuning changed, and target + alpha * pi(of it)
"""
from .task_vector import State, task_vector, transport

__all__ = ["State", "task_vector", "transport"]
