"""Why axes, and factors within axes that move, stay as they are; and what would free them."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..spec import Spec

_REASON = re.compile(r"(?P<why>.*?) \((?P<where>[^()]*:\d+ .*|aten\.[\w.]+|)\)", re.DOTALL)
ALONE = "a single element"  # an axis of size 1: there is nothing to permute
_NUMBER = re.compile(r"(?<![\w])\d+(?![\w])")

# What a user can do about it, by what the reason says. Inputs and positions cannot be freed.
_ADVICE = (
    (r"network output .*(cache|past_key)", "call the module with use_cache=False: its caches are outputs too"),
    (r"network output", 'infer(..., outputs="free"), if only features that move together are compared'),
    (r"has no rule", "write one, in a line or two: docs/add_a_rule.md"),
    (r"not covered by its rule|does not fit these arguments",
     "teach its rule, or give it a sample: docs/add_a_rule.md"),
    (r"falsified|bug worth reporting", "report it, with the module: a rule claims too much"),
    (r"decides a branch", "capture the part of the module without the branch"),
    (r"not used by the forward pass|outside the example", "give example inputs that use it: infer(model, [x, y])"),
)


@dataclass(frozen=True)
class Reason:
    """What stays for one kind of reason.

    why     the reason, the numbers of layers as * where there are several;  where: lines of the user's source
    texts   all reasons of the kind, as the spec has them
    axes    (tensor, axis) that stay, or hold a factor that does
    advice  what would free them, "" if nothing would
    """

    why: str
    where: tuple[str, ...]
    texts: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]
    advice: str


def reasons(spec: Spec, inside: bool = False) -> list[Reason]:
    """Why axes stay, the most frequent reason first. `inside`: also why factors stay inside axes that move, and not why
    single elements do."""
    axes: dict[str, dict[tuple[str, int], None]] = defaultdict(dict)
    for place, text in spec.pinned.items():
        if not (inside and text == ALONE):
            axes[text][place] = None
    for place, factor in _factors(spec) if inside else ():
        if factor in spec.reasons:
            axes[spec.reasons[factor]][place] = None
    kinds: dict[str, list[str]] = defaultdict(list)
    for text in axes:
        kinds[_NUMBER.sub("*", _split(text)[0])].append(text)
    return sorted((_reason(kind, texts, axes) for kind, texts in kinds.items()), key=lambda found: -len(found.axes))


def advice(text: str) -> str:
    """What would free what stays for a reason, "" if nothing would."""
    return next((words for pattern, words in _ADVICE if re.search(pattern, text)), "")


def _factors(spec: Spec) -> Iterator[tuple[tuple[str, int], str]]:
    for name, blocks in spec.layouts.items():
        for block in blocks:
            for d, axis in enumerate(block):
                yield from (((name, d), factor) for factor in axis.factors)


def _reason(kind: str, texts: list[str], axes: dict[str, dict[tuple[str, int], None]]) -> Reason:
    split = [_split(text) for text in texts]
    where = dict.fromkeys(place for _, place in split if place)
    places = dict.fromkeys(place for text in texts for place in axes[text])
    why = split[0][0] if len({why for why, _ in split}) == 1 else kind
    return Reason(why, tuple(where), tuple(texts), tuple(places), advice(texts[0]))


def _split(text: str) -> tuple[str, str]:
    match = _REASON.fullmatch(text)
    return (match["why"], match["where"]) if match else (text, "")
