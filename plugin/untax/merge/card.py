"""The model card of a merge: what was merged, with digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from untax import __version__
from untax.merge.references import Reference

# Library, tags and relation to the base, as the hub has them.
_KINDS = {
    "model": ("transformers", ["mergekit", "merge", "untax"], "merge"),
    "adapter": ("peft", ["lora", "merge", "untax"], "adapter"),
}


def model_card(
    name: str,
    references: Sequence[Reference],
    digests: Mapping[str, str],
    config: str,
    facts: Mapping[str, str],
    what: str,
) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        name: of the merged model.
        references: the inputs.
        digests: of each input, by its path.
        config: the mergekit YAML.
        facts: further lines, by their titles.
        what: ``model`` or ``adapter``.
    """
    rows = [f"| `{path}` | `{digest}` |" for path, digest in digests.items()]
    lines = [
        *("---", _metadata(references, what).strip(), "---", "", f"# {name}", ""),
        f"Merged by `untax merge` {__version__}, as a [mergekit](https://github.com/arcee-ai/mergekit) YAML says.",
        *("", *(f"- {title}: {fact}" for title, fact in facts.items()), ""),
        *("| input | SHA-256 or commit |", "|---|---|", *rows, ""),
        *(f"`untax.json` has the digests of the files of this {what}, too.", ""),
        *("```yaml", config.strip(), "```", ""),
    ]
    return "\n".join(lines)


def _metadata(references: Sequence[Reference], what: str) -> str:
    import yaml

    library, tags, relation = _KINDS[what]

    bases = list(dict.fromkeys(one.base.path for one in references if not Path(one.base.path).is_dir()))
    content: dict[str, Any] = {"base_model": bases, "base_model_relation": relation} if bases else {}
    return str(yaml.safe_dump({**content, "library_name": library, "tags": tags}))
