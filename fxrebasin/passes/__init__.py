"""Passes: changes of a state that its function does not see, each found in the graph, each a function of the state.

To be read in this order:

    folds      gains that only linear maps read
    trace      where elements stand behind ops that only move them
    graph      the linear maps of a graph
    shift      a norm's shift moves into the biases behind it
    gain       a norm's gain moves into the matrices behind it
    centre     what writes to a layer-normed stream is centred
    bias       key biases go, value biases move behind the output map
    canonical  all of them in this order, with a record of what was done, what not, and why
"""
from .canonical import Canonical, Step, canonicalize, rewrites

__all__ = ["Canonical", "Step", "canonicalize", "rewrites"]
