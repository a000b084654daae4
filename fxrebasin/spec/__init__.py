"""The result of the analysis, as values.

Every axis of the state is laid out in *factors* (index sets). A *group* is what one unknown permutation acts on: one
free factor, or several that move together as one. A group is *within* the factors on which its permutation may depend:
it holds one permutation for each index of their product, its `copies`.

To be read in this order:

    layout    how axes are made of factors: Axis, Site, Group
    order     the number of alignments, an integer that prints at any size
    value     Spec: all groups of one model, everything pinned, and why
    entry     one entry of the state: what moves it, and what keeps it
    stacks    parameters of submodules that are alike, seen as one tensor
    dtypes    what numbers are computed in
    roles     what an entry of a state is, and what follows from it
    fit       whether a state is one of a spec's model
    fitting   a file's names become the model's, step by step
    hold      the part of the symmetries that keeps some numbers in place
    axes      the table of git-re-basin, in and out
    text      a spec as JSON, and back
    validity  whether what was read is consistent
"""

from .entry import Entry, Part
from .layout import Axis, Block, Fold, Group, Rewrite, Site, Skip
from .order import Order
from .value import Spec

__all__ = ["Axis", "Block", "Entry", "Fold", "Group", "Order", "Part", "Rewrite", "Site", "Skip", "Spec"]
