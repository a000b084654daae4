"""What transformers converts when it saves and loads, asked of transformers itself.

Its modules and its files go by different names, and experts that lie in one tensor in the module lie in many
in the file. The library keeps both ways as rules for each model; here they are turned into links between the
two.
"""
from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..spec.fitting import Link

State = Mapping[str, Tensor]


def conversions(module: nn.Module | None) -> Callable[[State], list[Link]] | None:
    """What a module's library makes of the tensors of a file, as `spec.fitting.fit` takes it; None where
    nothing is converted: not a model of transformers, or of a version that has no such rules."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(module, getattr(library, "PreTrainedModel", ())):
        return None
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return None
    rules = get_model_conversion_mapping(module)
    return _Conversion(module, rules, loading).links if rules else None


class _Conversion:
    """The rules of one model."""

    def __init__(self, module: Any, rules: list, loading: Any):
        self.module, self.loading = module, loading
        self.renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
        self.own = module.state_dict()

    def links(self, tensors: State) -> list[Link]:
        """Links to the tensors that some tensors of a file become; `tensors` may be on the meta device."""
        groups: dict[tuple[str, str | None], list[str]] = {}
        for name in sorted(tensors, key=self.loading.dot_natural_key):
            new, pattern = self._renamed(name)
            if new != name or pattern is not None:
                groups.setdefault((new, pattern and self._rule(pattern)), []).append(name)
        links = (self._link(new, rule, names, tensors) for (new, rule), names in groups.items())
        return [link for link in links if link is not None]

    def _renamed(self, name: str) -> tuple[str, str | None]:
        return self.loading.rename_source_key(name, self.renamings, self.converters, self.module.base_model_prefix,
                                              self.own)

    def _rule(self, pattern: str) -> int:
        """The place of the rule that a pattern belongs to."""
        return next(k for k, rule in enumerate(self.converters) if pattern in rule.source_patterns)

    def _link(self, new: str, rule: int | None, names: list[str], tensors: State) -> Link | None:
        """None for tensors that the rule does not fit: of another model, or under a prefix."""
        if rule is None:
            return Link((new,), (names[0],))

        def read(found: State) -> dict[str, Tensor]:
            converter = copy.deepcopy(self.converters[rule])
            for name in names:
                _, pattern = self._renamed(name)
                converter.add_tensor(new, name, pattern, found[name])
            return self._run(converter, new)

        def write(found: State) -> dict[str, Tensor]:
            return self._reversed(rule, found, names)

        try:
            made = read({name: tensors[name].to("meta") for name in names})
        except Exception:  # noqa: BLE001 - a rule can raise anything
            return None
        return Link(tuple(made), tuple(names), read, write)

    def _run(self, converter: Any, name: str) -> dict[str, Tensor]:
        made = converter.convert(name, model=self.module, config=self.module.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    def _reversed(self, rule: int, found: State, names: list[str]) -> dict[str, Tensor]:
        """Tensors of the module as the file has them, under its names."""
        converter = self.converters[rule].reverse_transform()
        first = None
        for name in sorted(found, key=self.loading.dot_natural_key):
            new, pattern = converter.rename_source_key(name)
            first = first or new
            converter.add_tensor(first, name, pattern, found[name])
        made = self._run(converter, first)
        files = {self.loading.apply_renamings(name, self.renamings): name for name in names}
        prefix = self.module.base_model_prefix + "."
        result = {}
        for name, tensor in made.items():
            file = files.get(name) or files.get(name.removeprefix(prefix)) or files.get(prefix + name)
            if file is None:
                raise CheckpointError(f"{name!r} cannot be stored as it was ({names[0]!r} and the like): save the model "
                                      "with save_pretrained first, and give that")
            result[file] = tensor
        return result
