"""The factor algebra: index sets, what they are made of, and which of them move together.

An *atom* is an index set on which one unknown permutation acts. Every tensor (of the state or computed) is a
*value*: a partition of its index space into boxes, its *blocks*. In a block, every dimension is a *segment*: the
positions it covers, laid out as a product of atoms. A plain tensor is one block with one atom a dimension; a
concatenation has several blocks; a reshape gives segments of several atoms.

Relating values only ever adds knowledge, in four ways:

    union   two atoms are one
    bind    an atom turns out to be a product, a reordering or a concatenation of other atoms
    pin     an atom must stay as it is, with a reason
    hold    a tensor holds an atom (together with the other atoms of the block)

Dependence is read off at the end: atom d may be permuted differently for each index of h exactly when h is present
in every block in which d is present. Two free atoms that each depend on the other are one atom of their product size:
this is why splitting an axis takes nothing away until some tensor holds one part without the other.

Dimensions that can never be permuted and belong to no state tensor (batch, positions of an input) carry no atoms: they
are *opaque*, and pin whatever is related to them. Dimensions that hold equal numbers (after `expand`) are *free*: they
ask nothing of what is related to them.

When an atom is cut into pieces, whatever depends on it is cut apart with it (the heads of q, k and v in an axis that is
3 x heads x units); if a tensor later holds such parts together, relating them makes them one again.

What an index chooses (the weights of one expert for each token) no longer has the axis it was chosen from, but holds
it: at each place, one element of it. Such a *choice* counts as presence as long as the dimensions of the index are
there, and an index itself remembers the axis into which its numbers point.

There is no ATen and no torch in this package. Read it in the order `values`, `knowledge`, `unify`, `relate`, `rearrange`.
"""

from .rearrange import Factors
from .values import Atom, Block, Choice, Segment, Value, natural

__all__ = ["Atom", "Block", "Choice", "Factors", "Segment", "Value", "natural"]
