"""Every name of the hub: is there such a model or dataset, and may it be read?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from untax.check.findings import Finding, State
from untax.check.trainings import Training
from untax.recipes.checks import HUB_ID, is_local
from untax.recipes.graph import Plan
from untax.run.reads import maker

TIMEOUT_S = 5.0
Kind = Literal["model", "dataset"]


def hub_names(trainings: list[Training], plan: Plan, folder: Path) -> dict[tuple[Kind, str], str]:
    """(kind, id) -> where it is named first, of all that is no path here and nothing that the run makes."""
    found: dict[tuple[Kind, str], str] = {}
    for training in trainings:
        named: list[tuple[Kind, str, str]] = [("model", "base_model", str(training.keys.get("base_model")))]
        if training.keys.get("tokenizer_config"):
            named.append(("model", "tokenizer_config", str(training.keys["tokenizer_config"])))
        for entry in training.entries:
            # `path: json` names a format, and data_files the files.
            if not entry.get("data_files"):
                named.append(("dataset", "datasets", str(entry["path"])))
        for kind, key, name in named:
            if is_hub_name(name, folder) and maker(name, plan.nodes) is None:
                found.setdefault((kind, name), f"{training.config}: {key}")
    return found


def is_hub_name(name: str, folder: Path) -> bool:
    """Whether a name can only be one of the hub."""
    return bool(HUB_ID.fullmatch(name)) and not is_local(name) and not (folder / name).exists()


def hub_findings(names: dict[tuple[Kind, str], str], *, offline: bool) -> list[Finding]:
    """What the hub says of each name; what is in the local cache is not asked for."""
    found = []
    unreached = "offline" if offline else ""
    for (kind, name), where in names.items():
        if is_cached(kind, name):
            found.append(Finding("ok", where, f"{kind} {name} is in the local cache of the hub"))
            continue
        if unreached:
            found.append(Finding("unknown", where, f"{kind} {name}: not checked ({unreached})"))
            continue
        state, text, fix = _asked(kind, name)
        # Waiting for each of many names in turn would take minutes.
        unreached = "the hub did not answer before" if state == "unknown" else ""
        found.append(Finding(state, where, text, fix))
    return found


def is_cached(kind: Kind, name: str) -> bool:
    """Whether some revision of it is in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "snapshots"
    return snapshots.is_dir() and any(any(snapshot.iterdir()) for snapshot in snapshots.iterdir())


def _asked(kind: Kind, name: str) -> tuple[State, str, str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    login = "Ask for access on its page, then `hf auth login` on the machine that trains."
    absent = f"the hub has no {kind} {name}, or it is private"
    try:
        info = api.model_info(name, timeout=TIMEOUT_S) if kind == "model" else api.dataset_info(name, timeout=TIMEOUT_S)
        if info.gated:
            api.auth_check(name, repo_type=kind)
    except GatedRepoError:
        return "fail", f"{kind} {name} is gated, and you have no access to it (or are not logged in)", login
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 404):
            return "fail", absent, f"Correct the name. {login}"
        return "unknown", f"{kind} {name}: not checked ({_first_line(error)})", ""
    except OfflineModeIsEnabled:
        return "unknown", f"{kind} {name}: not checked (HF_HUB_OFFLINE is set)", ""
    # The client raises what its HTTP library raises: no network, no such host, a timeout, a hub that is down.
    except Exception as error:
        return "unknown", f"{kind} {name}: not checked ({_first_line(error)})", ""
    return "ok", f"the hub has {kind} {name}" + (", gated, and you have access" if info.gated else ""), ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def nothing_downloaded() -> Iterator[None]:
    """Inside, models and datasets come from this machine or not at all."""
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
