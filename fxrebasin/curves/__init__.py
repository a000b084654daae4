"""Scores along curves of states: over how much of a fine-tuning is carried, and on the way from one state to another.

To be read in this order:

    path    states between two states: on the straight line, and on the sphere
    repair  what the states between have lost: statistics of batch norms measured again, activations renormalised
    scored  scores along a curve, and how high the barrier is
"""
from .path import WAYS, between
from .repair import repaired
from .scored import Curve, barrier, sweep

__all__ = ["WAYS", "Curve", "barrier", "between", "repaired", "sweep"]
