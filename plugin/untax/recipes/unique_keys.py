"""YAML in which no key comes twice: of two arms with one name, YAML keeps the last without a word."""

from __future__ import annotations

from typing import Any

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, and an error for a key that comes again."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} comes a second time", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """The content of a YAML, plain values only.

    Raises:
        yaml.YAMLError: it is no YAML, or a key comes twice.
    """
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
