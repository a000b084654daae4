"""Evaluation: a captured program on real numbers, in float64, and how its outputs change when its state does.

To be read in this order:

    ops         which operations round, which compare numbers with each other
    grouped     an operation that refuses float64, written out
    wide        runs a program in float64, with casts to fewer bits lifted
    shaken      the same with every rounded number off by a little: how far rounding alone moves the outputs
    gap         two results beside each other, element by element
    trial       one state and one set of inputs: the outputs there, and whether another state gives the same
    weights     random states
    inputs      random inputs of the kind of the examples
"""
from .gap import Gap
from .inputs import KINDS, draw_inputs, given_inputs
from .shaken import ROUNDING
from .trial import Comparison, Trial
from .weights import draw_state
from .wide import Outcome, evaluate

__all__ = [
    "Comparison",
    "Gap",
    "KINDS",
    "Outcome",
    "ROUNDING",
    "Trial",
    "draw_inputs",
    "draw_state",
    "evaluate",
    "given_inputs",
]
