"""Fitting a file to a model: its names become the model's, step by step, and all of it can be undone.

Whoever trains and saves wraps modules and renames tensors: `module.` and `_orig_mod.` from wrappers, `model.`
from a trainer, `bert.` from the base model, `gamma` and `beta` from another framework, ties that are stored
once, tables that are no longer part of the model. A step is taken only where more names agree after it than
before; each is reported in one line. What a model's library converts when it saves and loads comes in as
`convert` (see `checkpoint.converted`).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from ..errors import Note
from .stacks import tied

State = Mapping[str, torch.Tensor]
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
RENAMED = {"gamma": "weight", "beta": "bias", "weight_g": "parametrizations.weight.original0",
           "weight_v": "parametrizations.weight.original1"}
HARMLESS = re.compile(r"(^|\.)(position_ids|token_type_ids|relative_position_index|num_batches_tracked|"
                      r"rotary_emb\.inv_freq|inv_freq|masked_bias|total_ops|total_params)$")
MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|self)\.bias$")  # causal masks, where they are no vectors


class Wanted(Protocol):
    """What a file is fitted to: a Spec, or as much of one."""

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def passed(self) -> tuple[str, ...]: ...
    @property
    def ties(self) -> Mapping[str, str]: ...


class FitNote(Note):
    """What was done to a state so that its names are the model's."""


@dataclass(frozen=True)
class Link:
    """Tensors of a model that are made of tensors of a file: one renamed, or several converted together.

    read   tensors of the file by name -> of the model; None: one, as it is;  write: the other way round
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[State], dict[str, torch.Tensor]] | None = None
    write: Callable[[State], dict[str, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Fit:
    """How the tensors of a model lie in a file.

    links  of all tensors of the file, those that the model does not have under their own names
    ties   names that the file leaves out -> the name of the same tensor that it has
    left   names in the file that the model does not have, and need not have
    steps  what was done, a line each; empty if the file has the model's names
    """

    links: tuple[Link, ...]
    ties: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    @cached_property
    def of(self) -> Mapping[str, Link]:
        """Name in the model -> link."""
        return {name: link for link in self.links for name in link.names}

    def file_of(self, name: str) -> str:
        """What a name that the file leaves out would be there: named as the tensor that it is tied to."""
        partner = self.ties[name]
        file = self.of[partner].files[0]
        return file.removesuffix(partner) + name if file.endswith(partner) else name

    def undo(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of the model, as they come, under their names in the file; what it leaves out is left
        out."""
        waiting: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
        partners: dict[str, torch.Tensor] = {}  # of tied tensors, what the file has
        for name, tensor in tensors:
            link = self.of.get(name)
            if name in self.ties.values():
                partners[name] = tensor
            if link is None:
                partner = partners.get(self.ties.get(name, ""))
                if partner is not None and not tied(partner, tensor):
                    yield self.file_of(name), tensor  # a tie that was broken
                continue
            if link.write is None:
                yield link.files[0], tensor
                continue
            group = waiting.setdefault(link.names, {})
            group[name] = tensor
            if len(group) == len(link.names):
                yield from link.write(waiting.pop(link.names)).items()


class Fitted(Mapping[str, torch.Tensor]):
    """A state under the names of the model. Tensors are taken from the given one when they are asked for."""

    def __init__(self, fit: Fit, state: State):
        self.fit, self.given = fit, state
        self._last: tuple[Link, dict[str, torch.Tensor]] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        link = self.fit.of[self.fit.ties.get(name, name)]
        if link.read is None:
            return self.given[link.files[0]]
        if self._last is None or self._last[0] is not link:
            self._last = link, link.read({file: self.given[file] for file in link.files})
        return self._last[1][self.fit.ties.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        yield from self.fit.of
        yield from self.fit.ties

    def __contains__(self, name: object) -> bool:
        return name in self.fit.of or name in self.fit.ties

    def __len__(self) -> int:
        return len(self.fit.of) + len(self.fit.ties)

    @property
    def steps(self) -> tuple[str, ...]:
        return self.fit.steps


def fit(spec: Wanted, state: State, convert: Callable[[State], list[Link]] | None = None) -> Fit:
    """How a state fits a spec, as well as it does.

    state    tensors by name; only names, shapes and dtypes are looked at, so that those on the meta device
             will do
    convert  tensors by name -> links to what the model's library makes of them; those that it leaves alone
             are absent
    """
    return _Fitting(spec, state).run(convert)


def agrees(spec: Wanted, state: State) -> bool:
    """Whether a state has the spec's names, and nothing else."""
    return set(spec.names) <= set(state) <= {*spec.names, *spec.passed}


def fitted(spec: Wanted, state: State, what: str) -> tuple[State, Fit | None]:
    """A state under the spec's names, as far as it fits, and how it was fitted (None: it has them). Warns of
    each step with a FitNote."""
    if agrees(spec, state) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        return state, None
    found = fit(spec, state)
    if not found.steps:
        return state, None
    for step in found.steps:
        warnings.warn(f"{what}: {step}", FitNote, stacklevel=4)
    own = Fitted(found, state)
    return {name: own[name] for name in own if name not in found.left}, found


def undone(found: Fit, result: State, given: State) -> dict[str, torch.Tensor]:
    """A result under the names of the state that was given, with what was left aside, in its order."""
    back = dict(found.undo(result.items())) | {name: given[name].detach().clone() for name in found.left}
    return {name: back[name] for name in (*(n for n in given if n in back), *(n for n in back if n not in given))}


class _Fitting:
    """The names of a file on their way to those of a model. `now`: name in the file -> what it has become."""

    def __init__(self, spec: Wanted, state: State):
        self.state, self.spec = state, spec
        self.want = set(spec.names)
        self.known = self.want | set(spec.passed)
        self.now = {name: name for name in state}
        self.links: list[Link] = []
        self.steps: list[str] = []

    def run(self, convert: Callable[[State], list[Link]] | None) -> Fit:
        steps = (self._unwrap, self._prefix, self._rename, self._prefix, lambda: self._convert(convert), self._prefix)
        for step in steps:
            if not self._open():
                break
            step()
        done = {name for link in self.links for name in link.files}
        self.now = {old: new if new in self.known else old for old, new in self.now.items()}
        links = [*self.links, *(Link((new,), (old,)) for old, new in self._single(done).items())]
        ties = self._ties({name for link in links for name in link.names})
        left = tuple(link.files[0] for link in links if link.read is None and link.names[0] not in self.known
                     and self._harmless(link.files[0]))
        if left:
            self.steps.append(f"left as they are, since the model does not have them: {_some(left)}")
        return Fit(tuple(links), ties, left, tuple(self.steps))

    def _open(self) -> list[str]:
        """Names in the file that are not yet one of the model's."""
        done = {name for link in self.links for name in link.files}
        return [old for old, new in self.now.items() if old not in done and new not in self.known]

    def _missing(self) -> set[str]:
        return self.want - set(self.now.values()) - {name for link in self.links for name in link.names}

    def _single(self, done: set[str]) -> dict[str, str]:
        """Renamed entries; of several that would have one name, the one that has it already, or the first."""
        taken: dict[str, str] = {}
        for old, new in sorted(self.now.items(), key=lambda pair: pair[0] != pair[1]):
            if old not in done:
                taken.setdefault(new, old)
        return {old: new if taken[new] == old else old for old, new in self.now.items() if old not in done}

    def _take(self, names: Mapping[str, str], text: str) -> None:
        """A step: names in the file -> their new names, if these are missing."""
        missing = self._missing()
        fresh = {old: new for old, new in names.items() if new in missing}
        if fresh:
            self.now |= fresh
            self.steps.append(f"{text}: {len(fresh)} names, such as {next(iter(fresh))!r}")

    # ---- steps --------------------------------------------------------------------------------------------

    def _unwrap(self) -> None:
        """Wrappers anywhere in a name, of the file or of the model."""
        plain = {_unwrapped(name): name for name in self._missing()}
        found = {old: plain[_unwrapped(self.now[old])] for old in self._open() if _unwrapped(self.now[old]) in plain}
        self._take(found, "names of wrappers (module., _orig_mod. and the like) left out or put in")

    def _prefix(self) -> None:
        """The prefix that makes most names agree, taken off or put before; again while that helps."""
        for _ in range(3):
            missing, names = self._missing(), {old: self.now[old] for old in self._open()}
            off = Counter(name[:k] for name in names.values() for k in _places(name) if name[k:] in missing)
            current = set(names.values())
            on = Counter(name[:k] for name in missing for k in _places(name) if name[k:] in current)
            best = max((*((n, p, True) for p, n in off.items()), *((n, p, False) for p, n in on.items())), default=None)
            if best is None:
                return
            _, prefix, away = best
            found = {old: name.removeprefix(prefix) if away else prefix + name for old, name in names.items()
                     if name.startswith(prefix) or not away}
            self._take(found, f"prefix {prefix!r} {'taken off' if away else 'put before'}")
            if away:  # from all that have it: there may be more to do about some
                self.now |= found

    def _rename(self) -> None:
        """The names of other frameworks and of older versions, under any prefix that is still to be taken
        off."""
        missing = self._missing()
        ends = {name[k:] for name in missing for k in (0, *_places(name))}
        for old in self._open():
            place, _, last = self.now[old].rpartition(".")
            new = f"{place}.{RENAMED[last]}" if last in RENAMED else None
            if new and (new in missing or any(new[k:] in ends for k in _places(new))):
                self.now[old] = new
        renamed = [old for old, new in self.now.items() if old.rpartition(".")[2] in RENAMED and old != new]
        if renamed:
            self.steps.append(f"gamma, beta and the like renamed: {len(renamed)} names, such as {renamed[0]!r}")

    def _convert(self, convert: Callable[[State], list[Link]] | None) -> None:
        """What the library of the model converts, under the outer prefix at which most of it becomes
        known."""
        if convert is None:
            return
        names = {self.now[old]: old for old in self._open()}
        first, *_ = names
        prefixes = {"", *(first[:k] for k in _places(first) if all(name.startswith(first[:k]) for name in names))}
        tries = [(prefix, convert({name.removeprefix(prefix): self.state[old] for name, old in names.items()}))
                 for prefix in sorted(prefixes, key=len)]
        missing = self._missing()
        scored = [(sum(name in missing for link in links for name in link.names), prefix, links) for prefix, links in tries]
        score, prefix, links = max(scored, key=lambda entry: entry[0])
        if not score:
            return
        for link in links:
            files = tuple(names[prefix + name if prefix + name in names else name] for name in link.files)
            if not set(link.names) <= missing:
                continue
            if link.read is None:
                self.now[files[0]] = link.names[0]
            else:
                self.links.append(_under(link, files))
        off = f", after the prefix {prefix!r} was taken off" if prefix else ""
        self.steps.append(f"converted as transformers does when it loads{off}: {score} names, such as "
                          f"{next(n for link in links for n in link.names if n in missing)!r}")

    # ---- what is over -------------------------------------------------------------------------------------

    def _ties(self, there: set[str]) -> dict[str, str]:
        """Names of tied tensors that the file leaves out."""
        members: dict[str, list[str]] = {}
        for alias, name in self.spec.ties.items():
            members.setdefault(name, [name]).append(alias)
        held = {name: n for name, names in members.items() for n in names[::-1] if n in there}
        found = {n: held[name] for name, names in members.items() for n in names if name in held and n not in there}
        if found:
            pairs = [f"{alias!r} is {name!r}" for alias, name in found.items()]
            self.steps.append(f"tied, and stored once: {', '.join(pairs[:3])}"
                              + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""))
        return found

    def _harmless(self, name: str) -> bool:
        """Tables and masks that older versions of a module kept, and newer ones make anew."""
        tensor = self.state[name]
        return bool(HARMLESS.search(name)) or bool(MASKS.search(name)) and tensor.ndim == 4


def _under(link: Link, files: tuple[str, ...]) -> Link:
    """A link whose tensors have other names in the file."""
    inner = dict(zip(files, link.files))
    outer = dict(zip(link.files, files))
    read, write = link.read, link.write
    assert read is not None and write is not None
    return Link(link.names, files, lambda tensors: read({inner[name]: tensor for name, tensor in tensors.items()}),
                lambda tensors: {outer[name]: tensor for name, tensor in write(tensors).items()})


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _places(name: str) -> list[int]:
    """Where a name can be cut: after each dot."""
    return [k + 1 for k, letter in enumerate(name) if letter == "."]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
