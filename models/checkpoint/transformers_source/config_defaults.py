"""The values that a configuration leaves out: its class in the installed Transformers has a default for each."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

from models.checkpoint.transformers_source.looked_up_names import source_of


class Default(NamedTuple):
    """A value by the name that its class has for it."""

    name: str
    value: int


@dataclass(frozen=True)
class ConfigClass:
    """A configuration's class, as far as its source tells in plain values."""

    defaults: Mapping[str, int] = field(default_factory=dict)  # whole numbers, but those that it computes
    computed: frozenset[str] = frozenset()  # fields that its methods set, such as from older names
    own_names: Mapping[str, str] = field(default_factory=dict)  # common name of a field -> this class's name for it
    text_part: TextPart | None = None  # of the language model, where that is a part of it

    def default(self, config: Mapping[str, Any], name: str) -> Default | None:
        """The value that the class adds; None where the configuration gives one, or the class has none."""
        names = {name, *(pair for pairs in self.own_names.items() if name in pairs for pair in pairs)}
        if any(config.get(each) is not None for each in names):
            return None
        return next((Default(each, self.defaults[each]) for each in sorted(names) if each in self.defaults), None)


@dataclass(frozen=True)
class TextPart:
    """The part `text_config` of a composite class."""

    model_type: str  # where the configuration names none
    defaults: Mapping[str, int]  # beside those of its class, where the configuration has no such part


def class_of_text_part(config: Mapping[str, Any]) -> ConfigClass:
    """The class of the language model's configuration, which may be a part of another or absent there."""
    outer, given = config_class(str(config.get("model_type"))), config.get("text_config")
    if isinstance(given, dict) and given.get("model_type"):
        return config_class(str(given["model_type"]))
    if (part := outer.text_part) is None:
        return outer
    found = config_class(part.model_type)
    return found if isinstance(given, dict) else replace(found, defaults={**found.defaults, **part.defaults})


@cache
def config_class(model_type: str) -> ConfigClass:
    """The class of a model type; one that says nothing where its source cannot be read."""
    classes = [node for node in _tree(model_type).body if isinstance(node, ast.ClassDef)]
    found = next((node for node in classes if _value(node, "model_type") == model_type), None)
    if found is None:
        return ConfigClass()
    own_names = _value(found, "attribute_map")
    computed = _set_in_methods(found)
    defaults = {name: value for name, value in _whole_numbers(_assigned(found)).items() if name not in computed}
    return ConfigClass(defaults, computed, own_names if isinstance(own_names, dict) else {}, _text_part(found, classes))


def _tree(model_type: str) -> ast.Module:
    try:
        return ast.parse(source_of(model_type, "configuration"))
    except SyntaxError:
        return ast.Module([], [])


def _text_part(composite: ast.ClassDef, classes: list[ast.ClassDef]) -> TextPart | None:
    """As the table of parts tells: by the name of a class, or by a model type and values of its own."""
    table = _assigned(composite).get("sub_configs_defaults")
    part = _items(table).get("text_config")
    arguments = {word.arg: word.value for word in part.keywords} if isinstance(part, ast.Call) else {}
    named = next((node for node in classes if isinstance(part, ast.Name) and node.name == part.id), None)
    found = _literal(arguments.get("model_type")) if named is None else _value(named, "model_type")
    return TextPart(found, _whole_numbers(_items(arguments.get("init_kwargs")))) if isinstance(found, str) else None


def _set_in_methods(node: ast.ClassDef) -> frozenset[str]:
    found = (each for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store))
    return frozenset(each.attr for each in found)


def _assigned(node: ast.ClassDef) -> dict[str, ast.expr]:
    """The values of a class's fields, annotated or not."""
    found: dict[str, ast.expr] = {}
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            found |= {target.id: line.value for target in targets if isinstance(target, ast.Name)}
    return found


def _items(table: ast.expr | None) -> dict[str, ast.expr]:
    """The values of a dictionary that is written out, by their keys."""
    if not isinstance(table, ast.Dict):
        return {}
    pairs = zip(table.keys, table.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _whole_numbers(values: Mapping[str, ast.expr]) -> dict[str, int]:
    found = {name: _literal(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if type(value) is int}


def _value(node: ast.ClassDef, name: str) -> Any:
    return _literal(_assigned(node).get(name))


def _literal(value: ast.expr | None) -> Any:
    """The value of an expression; None for one that must be computed."""
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
