"""The model card of a merge: what was merged, with digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from untax import __version__
from untax.merge.references import Reference

_DIGITS = 16


def model_card(
    name: str,
    references: Sequence[Reference],
    digests: Mapping[str, str],
    config: str,
    facts: Mapping[str, str],
) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        name: of the merged model.
        references: the inputs.
        digests: of each input, by its path.
        config: the mergekit YAML.
        facts: further lines, by their titles.
    """
    rows = [f"| `{path}` | `{digest if len(digest) != 64 else digest[:_DIGITS]}` |" for path, digest in digests.items()]
    lines = [
        *("---", _metadata(references).strip(), "---", "", f"# {name}", ""),
        f"Merged by [mergekit](https://github.com/arcee-ai/mergekit)'s configuration with `untax merge` {__version__}.",
        *("", *(f"- {title}: {fact}" for title, fact in facts.items()), ""),
        *("| input | SHA-256 (first digits) or commit |", "|---|---|", *rows, ""),
        *("`untax.json` has the digests whole, and those of the files of this model.", ""),
        *("```yaml", config.strip(), "```", ""),
    ]
    return "\n".join(lines)


def _metadata(references: Sequence[Reference]) -> str:
    import yaml

    bases = list(dict.fromkeys(one.base.path for one in references if not Path(one.base.path).is_dir()))
    content: dict[str, Any] = {"base_model": bases, "base_model_relation": "merge"} if bases else {}
    return str(yaml.safe_dump({**content, "library_name": "transformers", "tags": ["mergekit", "merge", "untax"]}))
