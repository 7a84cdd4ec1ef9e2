"""``untax recipe``: a run folder for any arm of the papers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from untax.cli.recipe_options import add, options_of, writing
from untax.recipes.arms import KINDS
from untax.recipes.checks import is_local

if TYPE_CHECKING:
    from untax.recipes.spec import RunSpec
    from untax.recipes.write import Changes

HELP = {
    "vanilla": "SFT on all instruction data: the baseline of everything.",
    "dtm": "Disperse-Then-Merge: K sub-models on K clusters, averaged. Settings: table 10 of the paper (Llama-2-7B).",
    "l2": "SFT with an L2 penalty on the delta (DTM table 1).",
    "ewc": "SFT with elastic weight consolidation (DTM table 1); needs pretraining text, or a Fisher file.",
    "replay": "SFT with pretraining text mixed in, 1:1 (DTM table 1).",
    "soup": "Four SFT runs on all data with other hyper-parameters, averaged (Uniform Soup, DTM table 1).",
    "individual": "Single trainings alone: SFT, sparse SFT, DPO, ORPO, ... (PAFT table 1).",
    "sequential": "SFT, then preference training that starts from its result (PAFT table 1).",
    "parallel": "Dense SFT and preference training in parallel, merged (PAFT table 1).",
    "paft": "PAFT: SFT with an L1 penalty and DPO in parallel from one base, merged. Settings: the Zephyr recipe.",
    "dtm-paft": "K sparse sub-models and a preference model from one base, merged; in neither paper.",
}


@click.group(
    "recipe",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--from", "spec", help="Expand an untax.yaml, or a preset by its name, instead.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="With --from: the run folder (default: the spec's own)."
)
@click.option("--presets", is_flag=True, help="List the presets: the papers' settings, and pairs of base and data.")
@click.pass_context
def command(context: click.Context, /, spec: str | None, out: Path | None, presets: bool, **options: Any) -> None:
    """Write a run folder: untax.yaml, Axolotl YAMLs and mergekit YAMLs. Nothing is trained.

    Without a subcommand, `--from untax.yaml` expands a recipe that was edited. The file itself stays as it is; what was
    generated before and not edited since is replaced, and what was edited by hand stays unless --force is given.
    """
    if context.invoked_subcommand is not None:
        return
    if presets:
        _list_presets()
    elif spec is None:
        click.echo(context.get_help())
    else:
        _expand(spec, out, options)


command = add(command, writing())


def _make_command(kind: str) -> click.Command:
    def run(**options: Any) -> None:
        _make(kind, options)

    return click.command(kind, help=HELP[kind])(add(run, options_of(kind)))


for _kind in KINDS:
    command.add_command(_make_command(_kind))


def _list_presets() -> None:
    from untax.recipes.presets import PRESETS

    for name, content in PRESETS.items():
        click.echo(f"{name}: {content['base']}, {', '.join(content['arms'])}")
    click.echo("\nExpand one with `untax recipe --from NAME -o run/`; recipes/NAME/README.md says more.")


def _expand(spec: str, out: Path | None, options: dict[str, Any]) -> None:
    from untax.errors import UntaxError, near_names
    from untax.recipes.paths import rebased
    from untax.recipes.presets import PRESETS, preset
    from untax.recipes.spec import read_spec

    path = Path(spec)
    if spec in PRESETS and not path.exists():
        if out is None:
            raise UntaxError("A preset needs a folder.", where=f"--from {spec}", fix="Name one with -o.")
        _write(preset(spec), out, options)
        return
    if not path.exists() and "/" not in spec and not path.suffix:
        raise UntaxError(
            f"There is no preset '{spec}', and no such file. {near_names(spec, list(PRESETS))}",
            where="--from",
            fix="Name an untax.yaml, its folder, or a preset.",
        )
    path = path / "untax.yaml" if path.is_dir() else path
    folder = out or path.parent
    _write(rebased(read_spec(path, look=True), path.parent, folder), folder, options, source=path)


def _make(kind: str, options: dict[str, Any]) -> None:
    from untax.recipes.options import arm_settings, paper_of, preference_settings, sft_settings
    from untax.recipes.papers import values
    from untax.recipes.paths import embedder_seen_from_run
    from untax.recipes.spec import check_spec

    out, problems = options["out"], list[str]()
    paper = paper_of(kind)
    sft = values(sft_settings(paper))
    given = {**options, "scales": list(options["scales"]) or None}
    for name in ("merge", "preference", "of"):
        given[name] = list(options.get(name) or ()) or None
    if given.get("embedder"):
        given["embedder"] = embedder_seen_from_run(given["embedder"], out)
    for name in ("fisher", "statistics"):
        given[name] = _seen(given[name], out, f"--{name}", problems) if given.get(name) else None
    given["sft"] = list(options.get("first_stage") or ()) or None
    kinds = _kinds(kind, options)
    common = _tokens(options)
    settings = {"learning_rate": sft["learning_rate"], "seed": options["seed"]}
    methods = given["preference"] or [name for name in given["of"] or [] if not name.startswith("sft")]
    training = {"sft": {**sft, **common}}
    if options["pairs"]:
        training |= {
            name: {**keys, **common} if name == "preference" else keys
            for name, keys in preference_settings(methods).items()
        }
    replay = {key: options[f"replay_{option}"] for key, option in _REPLAY.items() if options[f"replay_{option}"]}
    content = {
        "base": _seen(options["base"], out, "--base", problems),
        "device": options["device"],
        "seed": options["seed"],
        "sft": _entries("--dataset", options["datasets"], _more(options, "sft"), out, problems),
        "first_turn": options["first_turn"],
        "preference": _entries("--preference", options["pairs"], _more(options, "preference"), out, problems),
        "replay": _entries("--replay", options["texts"], replay, out, problems),
        "arms": {name: arm_settings(name, given if name == kind else _shared(given), **settings) for name in kinds},
        "training": training,
        "settings": paper,
        "dtype": "float32" if options["device"] == "cpu" else "bfloat16",
        "suite": options["suite"],
    }
    spec = check_spec(content, where="the options", folder=out, also=problems)
    _write(spec, out, options)


_REPLAY = {"split": "split", "name": "name", "field": "column"}


def _kinds(kind: str, options: dict[str, Any]) -> list[str]:
    """The arms, in the order of the tables."""
    wanted = {kind, *options["company"]}
    wanted |= {"vanilla"} if options["with_vanilla"] else set()
    wanted |= {"vanilla", "sequential", "parallel"} if options["with_baselines"] else set()
    return [name for name in KINDS if name in wanted]


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """What arms that come along take over from the options of the command's own arm."""
    names = ("scales", "preference", "delta_l1", "delta_sparsity", "clusters", "strategy", "merge", "statistics")
    return {name: given.get(name) for name in names}


def _more(options: dict[str, Any], data: str) -> dict[str, Any]:
    split = {"split": options[f"{data}_split"]} if options[f"{data}_split"] else {}
    return {**split, "type": _dataset_type(options[f"{data}_type"], f"--{data}-type")}


def _dataset_type(text: str, option: str) -> Any:
    """Axolotl's dataset type: a name, or its fields and formats as a mapping of YAML."""
    import yaml

    from untax.errors import UntaxError

    if not text.lstrip().startswith("{"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        fix = "Write it as {field_prompt: prompt, field_chosen: chosen, field_rejected: rejected}."
        raise UntaxError(f"This is no mapping: {' '.join(str(error).split())}", where=option, fix=fix) from error


def _entries(
    option: str, paths: tuple[str, ...], more: dict[str, Any], out: Path, problems: list[str]
) -> list[dict[str, Any]] | None:
    return [{"path": _seen(path, out, option, problems), **more} for path in paths] or None


def _seen(path: str, out: Path, option: str, problems: list[str]) -> str:
    """A path as seen from the run folder; one that leads nowhere is a problem among the others."""
    from untax.errors import UntaxError
    from untax.recipes.paths import seen_from_run

    try:
        return seen_from_run(path, out, where=option)
    except UntaxError as error:
        problems.append(f"{error.where}: {error.problem} {error.fix}")
        return "not/found"


def _tokens(options: dict[str, Any]) -> dict[str, Any]:
    """Axolotl's keys for the chat template and the padding token, of those that were given."""
    from untax.recipes.papers import ZEPHYR_TEMPLATE

    template, token = options["chat_template"], options["pad_token"]
    keys: dict[str, Any] = {}
    if template == "zephyr":
        keys |= {"chat_template": "jinja", "chat_template_jinja": ZEPHYR_TEMPLATE}
    elif template:
        keys["chat_template"] = template
    return {**keys, "special_tokens": {"pad_token": token}} if token else keys


def _write(spec: RunSpec, out: Path, options: dict[str, Any], *, source: Path | None = None) -> None:
    from untax.recipes.rows import check_rows, known_rows, long_warmups
    from untax.recipes.write import changes, write_run_folder

    where = source or "the options"
    rows = known_rows(spec, out)
    if rows is not None:
        check_rows(spec, rows, where=where)
    _check_dispersals(spec, where)
    act = changes if options["dry_run"] or options["diff"] else write_run_folder
    made = act(spec, out, force=options["force"], source=source)
    if options["diff"]:
        click.echo(made.diff(out) or f"{out}: nothing would change.\n", nl=False)
        return
    _tell(made, spec, out, dry=options["dry_run"])
    for warning in long_warmups(spec, rows) if rows is not None else []:
        click.echo(f"untax: warning: {warning}", err=True)


def _check_dispersals(spec: RunSpec, where: object) -> None:
    from untax.disperse.settings import read_settings
    from untax.recipes.arms import Dtm

    for name, arm in spec.arms.items():
        if isinstance(arm, Dtm):
            read_settings(arm.disperse_keys, where=f"{where}: arms.{name}", cluster_needed=False)


def _bare_names(spec: RunSpec) -> list[str]:
    """Names without an owner: the hub has some, and a folder's name that is misspelt looks like them."""
    pairs = spec.preference if isinstance(spec.preference, dict) else {"": spec.preference or []}
    entries = [*(spec.sft or []), *(spec.replay or []), *(entry for listed in pairs.values() for entry in listed)]
    names = [spec.base, *(str(entry["path"]) for entry in entries)]
    return list(dict.fromkeys(name for name in names if "/" not in name and not is_local(name)))


def _tell(made: Changes, spec: RunSpec, out: Path, *, dry: bool) -> None:
    nodes = made.plan.nodes
    trainings, merges = (sum(node.kind == kind for node in nodes) for kind in ("train", "merge"))
    if dry:
        for name, (old, _) in made.written.items():
            click.echo(f"would {'write' if old is None else 'replace'} {out / name}")
        for name in made.removed:
            click.echo(f"would remove {out / name}")
    for name in made.kept:
        click.echo(
            f"{out / name}: edited by hand, kept and run as it stands (--diff shows what differs, --force overwrites)"
        )
    for name in _bare_names(spec):
        click.echo(f"{name}: no such file or folder here, so it is taken as a hub id")
    click.echo(f"{out}: {trainings} trainings and {merges} merges, {'nothing written' if dry else 'nothing started'}.")
    if not dry:
        click.echo(f"Look it over:          untax check {shlex.quote(str(out))}")
        click.echo(f"All of it, resumable:  untax run {shlex.quote(str(out))}        (what it would do: --dry-run)")
    click.echo(f"Or by hand, in {out}:")
    for node in nodes:
        click.echo(f"  {shlex.join(node.command)}")
