"""The factor algebra against numbers: whatever a program of views, sums and products does to a tensor, the claimed group
must commute with it; and what is claimed must not depend on the order in which facts become known."""

from __future__ import annotations

import math
from math import factorial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxrebasin.check import read
from fxrebasin.factors import Atom, Factors, Segment, Value, natural


def letters(value) -> list[str]:
    return [f"d{k}" for k in range(len(value.shape))]


def hold(factors: Factors, value: Value, *dims: int) -> Value:
    """A tensor that holds some dimensions of a value without the others."""
    names = letters(value)
    return factors.relate([(value, names)], [[names[d] for d in dims]])[0]


def same(factors: Factors, a: Value, b: Value) -> Value:
    return factors.relate([(a, letters(a)), (b, letters(b))], [letters(a)])[0]


def order(**values: Value) -> int:
    return read(values, {}).order


# ------------------------------------------------------------------------------------------------- orders known by hand


@pytest.fixture
def factors() -> Factors:
    return Factors()


def test_a_plain_value_may_be_permuted_in_all_ways(factors):
    """Axes of one tensor that nothing else holds: each element may go anywhere."""
    assert order(x=factors.value((2, 3))) == factorial(6)


def test_what_is_held_alone_is_independent(factors):
    x = factors.value((2, 3))
    hold(factors, x, 0)
    assert order(x=x) == factorial(2) * factorial(3) ** 2
    hold(factors, x, 1)
    assert order(x=x) == factorial(2) * factorial(3)


def test_a_split_takes_nothing_away(factors):
    x = factors.value((12,))
    heads = factors.reshape(x, (3, 4))
    assert order(x=x) == factorial(12)
    factors.reshape(heads, (12,))
    assert order(x=x) == factorial(12)
    hold(factors, heads, 0)
    assert order(x=x) == factorial(3) * factorial(4) ** 3


def test_a_cut_takes_away_what_crosses_it(factors):
    x = factors.value((7,))
    factors.take(x, 0, np.arange(3))
    assert order(x=x) == factorial(3) * factorial(4)


def test_a_cut_separates_what_is_within(factors):
    """q, k and v in an axis of 3 x heads x units: heads of all three are tied, units of q and k, not those of v."""
    x = factors.value((3 * 2 * 4,))
    fused = factors.reshape(x, (3, 2, 4))
    q, k, v = (factors.reshape(factors.take(fused, 0, np.array([i])), (2, 4)) for i in range(3))
    factors.relate([(q, ["h", "d"]), (k, ["h", "d"])], [["h"]])
    factors.relate([(v, ["h", "d"]), (hold(factors, q, 0), ["h"])], [["h", "d"]])
    assert order(x=x) == factorial(2) * factorial(4) ** 2 * factorial(4) ** 2


def test_a_cut_in_the_middle(factors):
    """The same where the flat axis is heads x 3 x units: its thirds are no intervals."""
    x = factors.value((2 * 3 * 4,))
    fused = factors.reshape(x, (2, 3, 4))
    q, k, v = (factors.reshape(factors.take(fused, 1, np.array([i])), (2, 4)) for i in range(3))
    factors.relate([(q, ["h", "d"]), (k, ["h", "d"])], [["h"]])
    factors.relate([(v, ["h", "d"]), (hold(factors, q, 0), ["h"])], [["h", "d"]])
    assert order(x=x) == factorial(2) * factorial(4) ** 2 * factorial(4) ** 2


def test_parts_that_are_held_together_are_one_again(factors):
    x = factors.value((8,))
    halves = factors.reshape(x, (2, 4))
    same(factors, factors.take(halves, 0, np.array([0])), factors.take(halves, 0, np.array([1])))
    assert order(x=x) == factorial(4)


def test_a_reversal_keeps_exchanges_of_pairs(factors):
    x = factors.value((6,))
    same(factors, x, factors.take(x, 0, np.arange(6)[::-1]))
    assert order(x=x) == factorial(3)


def test_an_atom_under_two_letters_carries_no_dependence(factors):
    """P @ P.T: rows are tied to rows, so units cannot differ from row to row."""
    p = factors.value((3, 4))
    factors.relate([(p, ["n", "d"]), (p, ["m", "d"])], [["n", "m"]])
    assert order(p=p) == factorial(3) * factorial(4)


def test_concatenation_keeps_its_segments(factors):
    x, y = factors.value((3,)), factors.value((4,))
    z = factors.concatenate([x, y], 0)
    assert order(x=x, y=y) == factorial(3) * factorial(4)
    same(factors, z, w := factors.value((7,)))
    assert order(x=x, y=y, w=w) == factorial(3) * factorial(4)
    same(factors, w, factors.concatenate([y, x], 0))  # segments overlap: 3 + 4 against 4 + 3
    assert order(x=x, y=y, w=w) < factorial(3) * factorial(4)


def test_misaligned_products_are_pinned(factors):
    x = factors.value((6,))
    a, b = factors.reshape(x, (2, 3)), factors.reshape(x, (3, 2))
    hold(factors, a, 0), hold(factors, b, 0)
    assert order(x=x) == 1
    assert any("does not align" in reason or "do not align" in reason for reason in read({"x": x}, {}).pinned.values())


def test_the_first_reason_stays(factors):
    atom = Atom(3)
    assert factors.pin([atom], "first") and not factors.pin([atom], "second")
    assert atom.pinned == "first"


def test_pinning_spreads_by_union(factors):
    x, y = factors.value((3,)), factors.value((3,))
    factors.pin(x.blocks[0].atoms(), "stop")
    same(factors, x, y)
    assert read({"x": x, "y": y}, {}).pinned == {("x", 0): "stop", ("y", 0): "stop"}


def test_opaque_dimensions_pin_what_they_meet_and_free_ones_do_not(factors):
    x, y = factors.value((3,)), factors.value((4,))
    same(factors, x, factors.constant((3,)))
    assert order(x=x) == factorial(3)
    same(factors, y, factors.value((4,), "an input"))
    assert order(y=y) == 1


def test_a_segment_without_atoms_is_one_position_or_opaque_or_free():
    assert Segment.plain(natural((1,)), "why").reason is None
    assert Segment.plain(natural((2,)), "why").reason == "why"


# -------------------------------------------------------------------------------------------------------- random programs

SHAPES = [(12,), (2, 6), (3, 4), (4, 3), (2, 2, 3), (6, 4), (8, 3), (5,), (2, 5), (3, 3)]


def factorisations(total: int, draw) -> tuple[int, ...]:
    shape = []
    while total > 1 and len(shape) < 3:
        n = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        shape.append(n)
        total //= n
    return tuple(shape + [total] * (total > 1)) or (1,)


class Machine:
    """Runs one program three times over: on values, on numbers, and on permuted numbers."""

    def __init__(self, shapes):
        self.factors = Factors()
        self.state = {f"x{k}": self.factors.value(shape) for k, shape in enumerate(shapes)}
        self.values = list(self.state.values())
        self.steps: list = []  # functions from the numbers so far to the next
        self.words: list[str] = []

    def step(self, what: str, arguments: list[Value], apply, compute) -> None:
        """One more tensor. What the algebra gives up on is pinned, as `infer` does."""
        shape = compute([np.zeros(value.shape, dtype=int) for value in self.values]).shape
        try:
            value = apply()
        except ValueError as error:
            for argument in arguments:
                for block in argument.blocks:
                    self.factors.pin(block.atoms(), str(error))
            value = self.factors.value(shape, "given up")
        assert value.shape == shape
        self.values.append(value)
        self.steps.append(compute)
        self.words.append(what)

    def __repr__(self) -> str:
        return f"{[value.shape for value in self.state.values()]}: {'; '.join(self.words)}"

    def run(self, start: list[np.ndarray]) -> list[np.ndarray]:
        numbers = list(start)
        for compute in self.steps:
            numbers.append(compute(numbers))
        return numbers

    def grow(self, draw) -> None:
        k = draw(st.integers(0, len(self.values) - 1))
        value, factors, shape = self.values[k], self.factors, self.values[k].shape
        what = draw(st.sampled_from(["reshape", "reshape", "permute", "take", "cut", "concatenate", "add", "sum", "expand",
                                     "multiply"]))
        if what == "reshape":
            new = factorisations(math.prod(shape), draw)
            self.step(f"{k} as {new}", [value], lambda: factors.reshape(value, new), lambda n: n[k].reshape(new))
        elif what == "permute":
            dims = draw(st.permutations(range(len(shape))))
            self.step(f"{k} permuted {dims}", [value], lambda: factors.permute(value, dims), lambda n: n[k].transpose(dims))
        elif what in ("take", "cut") and shape:
            d = draw(st.integers(0, len(shape) - 1))
            index = np.arange(draw(st.integers(1, shape[d]))) if what == "cut" else np.array(
                draw(st.lists(st.integers(0, shape[d] - 1), min_size=1, max_size=8)))
            self.step(f"{k} at {index} of {d}", [value], lambda: factors.take(value, d, index),
                      lambda n: n[k].take(index, axis=d))
        elif what == "sum" and shape:
            kept = sorted(draw(st.lists(st.sampled_from(range(len(shape))), unique=True)))
            gone = tuple(d for d in range(len(shape)) if d not in kept)
            self.step(f"{k} summed over {gone}", [value], lambda: hold(factors, value, *kept), lambda n: n[k].sum(axis=gone))
        elif what == "expand":
            new = (draw(st.integers(2, 3)), *shape)
            self.step(f"{k} expanded to {new}", [value], lambda: factors.expand(value, new),
                      lambda n: np.broadcast_to(n[k], new))
        elif what == "multiply":
            self.multiply(k, draw)
        elif what in ("add", "concatenate") and shape:
            fitting = [j for j, other in enumerate(self.values) if len(other.shape) == len(shape)
                       and other.shape[what == "concatenate":] == shape[what == "concatenate":]]
            j = draw(st.sampled_from(fitting))
            other = self.values[j]
            if what == "add":
                self.step(f"{k} + {j}", [value, other], lambda: same(factors, value, other), lambda n: n[k] + n[j])
            else:
                self.step(f"{k} | {j}", [value, other], lambda: factors.concatenate([value, other], 0),
                          lambda n: np.concatenate([n[k], n[j]]))

    def multiply(self, k: int, draw) -> None:
        """A product with a tensor that shares a size, summed over it."""
        value, shape = self.values[k], self.values[k].shape
        partners = [(j, d, e) for j, other in enumerate(self.values) for d, size in enumerate(shape)
                    for e, n in enumerate(other.shape) if n == size > 1 and len(shape) + len(other.shape) <= 5]
        if not partners:
            return
        j, d, e = draw(st.sampled_from(partners))
        left = [f"a{i}" for i in range(len(shape))]
        right = [left[d] if i == e else f"b{i}" for i in range(len(self.values[j].shape))]
        out = [x for x in left + right if x != left[d]]
        self.step(f"{k} times {j} over {d}, {e}", [value, self.values[j]],
                  lambda: self.factors.relate([(value, left), (self.values[j], right)], [out])[0],
                  lambda n: np.tensordot(n[k], n[j], axes=([d], [e])))


@st.composite
def machines(draw) -> Machine:
    machine = Machine(draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 8))):
        machine.grow(draw)
        if math.prod(machine.values[-1].shape) > 2000:
            break
    return machine


def commutes(machine: Machine, seed: int) -> bool:
    """Whether permuting the state permutes every later tensor as its blocks say."""
    spec = read(machine.state, {str(k): value for k, value in enumerate(machine.values)})
    element, rng = spec.random(seed), np.random.default_rng(seed)
    start = [rng.integers(-(10 ** 3), 10 ** 3, value.shape) for value in machine.state.values()]
    moved = [element.move(torch.from_numpy(x), spec.layouts[name]).numpy() for name, x in zip(machine.state, start)]
    return all(np.array_equal(element.apply_to_output(str(k), torch.from_numpy(np.array(before))).numpy(), after)
               for k, (before, after) in enumerate(zip(machine.run(start), machine.run(moved))))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(machines(), st.integers(0, 2 ** 20))
def test_random_programs_commute_with_the_claimed_group(machine, seed):
    assert all(commutes(machine, seed + k) for k in range(3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(machines(), st.integers(0, 2 ** 20))
def test_blocks_partition_every_tensor(machine, seed):
    for value in machine.values:
        seen = np.zeros(value.shape, dtype=int)
        for block in value.blocks:
            seen[np.ix_(*(s.positions.reshape(-1) for s in block.segments)) if value.shape else ()] += 1
        assert (seen == 1).all()


# --------------------------------------------------------------------------------------------------- order of the facts


def aligned(total: int, draw) -> tuple[int, ...]:
    """A view whose dimensions are runs of the primes 2, 2, 2, 3 in this order: any two such views have a common one."""
    primes = {24: [2, 2, 2, 3], 12: [2, 2, 3], 6: [2, 3]}[total]
    shape = [primes[0]]
    for p in primes[1:]:
        if draw(st.booleans()):
            shape.append(p)
        else:
            shape[-1] *= p
    return tuple(shape)


@st.composite
def facts(draw):
    """Facts about a few tensors: two of them agree as viewed, a sum holds one of the dimensions of a view, a cut.

    Only views that align. Where they do not, something is given up, and how much depends on what was cut before."""
    shapes = draw(st.lists(st.sampled_from([(12,), (2, 6), (24,), (4, 6), (8, 3), (6,)]), min_size=2, max_size=3))
    found = []
    for _ in range(draw(st.integers(2, 5))):
        i = draw(st.integers(0, len(shapes) - 1))
        view = aligned(math.prod(shapes[i]), draw)
        kind = draw(st.sampled_from(["agree", "hold", "cut"]))
        if kind == "agree":
            j = draw(st.sampled_from([j for j, s in enumerate(shapes) if math.prod(s) == math.prod(shapes[i])]))
            found.append((kind, i, view, j))
        elif kind == "hold":
            found.append((kind, i, view, draw(st.integers(0, len(view) - 1))))
        elif view[0] in (2, 3):
            found.append((kind, i, view, draw(st.integers(1, view[0]))))
    return shapes, found, draw(st.permutations(found))


def told(shapes, found) -> Factors:
    factors = Factors()
    values = [factors.value(shape) for shape in shapes]
    for kind, i, view, x in found:
        seen = factors.reshape(values[i], view)
        if kind == "agree":
            same(factors, seen, factors.reshape(values[x], view))
        elif kind == "hold":
            hold(factors, seen, x)
        else:
            factors.take(seen, 0, np.arange(x))
    return read({f"x{k}": value for k, value in enumerate(values)}, {})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(facts())
def test_the_order_of_facts_does_not_matter(drawn):
    shapes, found, shuffled = drawn
    one, other = told(shapes, found), told(shapes, shuffled)
    assert one.order == other.order
