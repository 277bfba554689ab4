"""`lifelong merge`: one model out of several, by a recipe or by a rule and its settings."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.cli import merge_pages
from lifelong.cli.arguments import Parser, Values, size
from lifelong.cli.merge_pages import Scores
from lifelong.errors import InputError, unknown

if TYPE_CHECKING:
    from lifelong.merging.engine import Finished
    from lifelong.merging.plan import Plan
    from lifelong.merging.recipe import MergeRecipe


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.usage = (
        "lifelong merge RECIPE.yml OUT [options]\n"
        "       lifelong merge --rule RULE [--base MODEL] MODEL MODEL ... --out OUT [--rule.SETTING VALUE] [options]\n"
        "       lifelong merge --into DIR MODEL ... [--rule.SETTING VALUE] [options]\n"
        "       lifelong merge inspect MODEL MODEL ... [--base MODEL] [--merged MODEL] [-o PAGE.html] [--json]\n"
        "       lifelong merge search RECIPE.yml --evaluate COMMAND --out OUT [--trials N] [--sampler tpe|cma]\n"
        "       lifelong merge extract BASE TUNED --out ADAPTER [--rank N | --energy SHARE]\n"
        "       lifelong merge statistics MODEL --rule fisher|regmean --data TABLE [--column NAME] [--samples N]"
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a recipe as mergekit has it, and OUT; or models")
    parser.add_argument("--rule", help="how to merge, where there is no recipe; `lifelong list rules` shows them")
    parser.add_argument("--base", metavar="MODEL", help="the model that the others were fine-tuned from")
    parser.add_argument("--out", metavar="OUT", help="folder for the result; it must not exist")
    parser.add_argument("--evaluate", metavar="COMMAND", help="prints how good the model in the folder {} is")
    parser.add_argument("--trials", metavar="N", default="50", help="search: merges to try (default 50)")
    parser.add_argument("--minimize", action="store_true", help="search: smaller scores are better")
    parser.add_argument("--sampler", default="tpe", metavar="tpe|cma", help="search: how to draw (default tpe)")
    parser.add_argument("--seed", default="0", metavar="N", help="search, statistics: of what is drawn (default 0)")
    parser.add_argument(
        "--report", action="store_true", help="read all again and write OUT/report.html: what came of it"
    )
    parser.add_argument("-o", "--output", metavar="PAGE.html", help="inspect: a page with charts instead of the table")
    parser.add_argument("--merged", metavar="MODEL", help="inspect: a merge of the models, to see what it kept of each")
    parser.add_argument("--rank", metavar="N", help="of an adapter that is extracted or merged")
    parser.add_argument(
        "--energy", metavar="SHARE", help="extract: share of each squared change to reach (default 0.9)"
    )
    parser.add_argument(
        "--data", metavar="TABLE", help="statistics: texts of the model's own task; CSV, JSONL, Parquet"
    )
    parser.add_argument("--column", metavar="NAME", help="statistics: that holds the texts (default: the usual one)")
    parser.add_argument("--samples", metavar="N", default="256", help="statistics: texts to draw (default 256)")
    parser.add_argument(
        "--tokens", metavar="N", default="128", help="statistics: tokens read of each text (default 128)"
    )
    parser.add_argument("--into", metavar="DIR", help="add the models to an earlier result that was kept running")
    parser.add_argument("--keep-running", action="store_true", help="store what adding models later will need")
    parser.add_argument(
        "--out-dtype", metavar="DTYPE", help="format of the result (default: as the base, or the first)"
    )
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file of weights (default 5GB)")
    parser.add_argument("--threads", metavar="N", help="workers (default: the processors there are)")
    parser.add_argument(
        "--device",
        default="auto",
        help="where rules of whole matrices (tsv, iso_c ...) compute: auto (CUDA if there is one), cpu, cuda",
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="merge inputs with NaN or infinities too")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted merge")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    parser.epilog = "Settings of a rule are dotted: --rule.density 0.2, or one for each model: --rule.weight 1,0.5."
    parser.groups = ("rule",)


def main(arguments: Namespace) -> int:
    """Merge; returns the exit status."""
    from lifelong.merging import engine

    others = {"inspect": _inspect, "extract": _extract, "search": _search, "statistics": _statistics}
    if arguments.paths and arguments.paths[0] in others:
        return others[arguments.paths[0]](arguments)
    if (
        arguments.rule
        and arguments.paths
        and all((Path(path) / "adapter_config.json").is_file() for path in arguments.paths)
    ):
        return _merge_adapters(arguments)
    began = time.monotonic()
    shard_bytes = size("shard-size", arguments.shard_size)
    threads = _count("threads", arguments.threads)
    plan, out = _planned(arguments)
    running = engine.merge(
        plan,
        out,
        threads=threads,
        shard_bytes=shard_bytes,
        resume=arguments.resume,
        allow_nonfinite=arguments.allow_nonfinite,
        replace=arguments.into is not None,
        device=_device(arguments.device, plan),
    )
    _watch(running, len(plan.jobs))
    seconds = time.monotonic() - began
    scores = _scores(plan, out, arguments.evaluate) if arguments.evaluate else {}
    shares = _normalised(plan, scores)
    page = merge_pages.write_merge_page(plan, out, scores, shares, threads=threads) if arguments.report else None
    _show(plan, out, seconds, scores, shares, page, arguments.json)
    return 0


def _device(name: str, plan: Plan) -> str | None:
    """Return where rules of whole matrices compute, None for NumPy; asks PyTorch only where the plan has any."""
    from lifelong.merging.work import elsewhere

    kinds = ("auto", "cpu", "cuda")
    if name.partition(":")[0] not in kinds:
        raise unknown("device", name, kinds)
    if name == "cpu" or not any(job.rule is not None and elsewhere(job.rule) for job in plan.jobs):
        return None
    import torch

    if torch.cuda.is_available():
        return "cuda" if name == "auto" else name
    if name == "auto":
        return None
    raise InputError(f"device {name}: this machine has no CUDA device: take cpu")


def _inspect(arguments: Namespace) -> int:
    """Show what models have in common, without merging them."""
    from lifelong.merging.checkpoint import open_model
    from lifelong.merging.inspection import inspect, overall

    paths = arguments.paths[1:]
    base, merged = (open_model(Path(path)) if path else None for path in (arguments.base, arguments.merged))
    experts = {path: open_model(Path(path)) for path in paths}
    found = list(inspect(experts, base, merged, threads=_count("threads", arguments.threads)))
    page = None
    if arguments.output:
        page = merge_pages.write_inspection_page(found, experts, base, merged, Path(arguments.output))
    if arguments.json:
        every = [dataclasses.asdict(each) for each in found]
        shown = {"models": paths, "all": dataclasses.asdict(overall(found)), "tensors": every}
        print(json.dumps({**shown, **({"page": str(page)} if page else {})}))
        return 0
    if page:
        print(page)
        return 0
    from rich.console import Console
    from rich.table import Table

    names = [*paths, *(["merged"] if merged else [])]
    table = Table("tensor", *(f"change of {name}" for name in names), "least cosine", "sign conflicts")
    for name in paths if merged else []:
        table.add_column(f"kept of {name}")
    for each in (*found, overall(found)):
        cosines = [each.cosines[i][j] for i in range(len(paths)) for j in range(i)]
        cells = [f"{norm / each.base_norm:.2%}" if each.base_norm else f"{norm:.3g}" for norm in each.norms]
        least = f"{min(cosines):.3f}" if cosines else ""
        table.add_row(each.name, *cells, least, f"{each.conflicts:.1%}", *(f"{share:.0%}" for share in each.kept))
    console = Console()
    if not console.is_terminal:
        # A file has no width to keep to.
        console = Console(width=1000)
        table.box = None
    console.print(table)
    return 0


def _extract(arguments: Namespace) -> int:
    """Write what fine-tuning changed as an adapter."""
    from lifelong.merging.checkpoint import open_model
    from lifelong.merging.lora import extract

    if len(arguments.paths) != 3 or arguments.out is None:
        raise InputError("extract takes the model before, the model after, and --out")
    if arguments.rank and arguments.energy:
        raise InputError("give either --rank or --energy")
    before, after = (open_model(Path(path)) for path in arguments.paths[1:])
    energy = _share(arguments.energy or "0.9")
    found = extract(before, after, Path(arguments.out), rank=_count("rank", arguments.rank), energy=energy)
    if arguments.json:
        print(json.dumps({"out": arguments.out, **dataclasses.asdict(found)}))
        return 0
    ranks = sorted(found.ranks.values())
    print(
        f"{arguments.out}: {len(ranks)} weights, ranks {ranks[0]} to {ranks[-1]}, "
        f"{found.energy:.1%} of the squared change"
    )
    if found.left_out:
        first, more = found.left_out[:3], len(found.left_out) - 3
        rest = f" and {more} more, which no adapter of linear layers holds" if more > 0 else ""
        print(f"changed and not in it: {', '.join(first)}{rest}")
    return 0


def _search(arguments: Namespace) -> int:
    """Try merges against a command that evaluates them."""
    from lifelong.merging.evaluation import evaluated
    from lifelong.merging.search import front, search
    from lifelong.yaml_file import read_yaml

    if len(arguments.paths) != 2 or arguments.out is None or arguments.evaluate is None:
        raise InputError("search takes a recipe, --evaluate and --out")
    recipe = read_yaml(Path(arguments.paths[1]))
    running = search(
        recipe,
        functools.partial(evaluated, arguments.evaluate),
        Path(arguments.out),
        trials=_count("trials", arguments.trials) or 1,
        minimize=arguments.minimize,
        sampler=arguments.sampler,
        seed=_seed(arguments.seed),
        resume=arguments.resume,
    )
    found = []
    for each in running:
        found.append(each)
        scores = ", ".join(f"{name} {score:.4g}" for name, score in each.scores.items())
        print(f"trial {each.number}: {scores}", file=sys.stderr)
    best = front(found, arguments.minimize)
    page = merge_pages.write_search_page(recipe, Path(arguments.out), minimize=arguments.minimize)
    if arguments.json:
        listed = [dataclasses.asdict(each) for each in best]
        print(json.dumps({"out": arguments.out, "best": listed, "page": str(page)}))
    else:
        print(
            f"{arguments.out}: {len(found)} merges tried now, best {', '.join(f'best-{each.number}' for each in best)}"
        )
        print(page)
    return 0


def _statistics(arguments: Namespace) -> int:
    """Collect what a rule must know of a model beside its weights, and write it beside them."""
    from lifelong.errors import unknown
    from lifelong.merging import collect, texts
    from lifelong.merging.rules import RULES

    if len(arguments.paths) != 2 or arguments.rule is None or arguments.data is None:
        raise InputError("statistics takes one model, --rule and --data")
    if arguments.rule not in RULES:
        raise unknown("merge rule", arguments.rule, RULES)
    kind = RULES[arguments.rule].statistic
    if not kind:
        able = " and ".join(name for name, rule in RULES.items() if rule.statistic)
        raise InputError(f"rule {arguments.rule} needs no statistics; {able} do")
    model, seed = Path(arguments.paths[1]), _seed(arguments.seed)
    samples, longest = _count("samples", arguments.samples) or 1, _count("tokens", arguments.tokens) or 1
    drawn = texts.read(Path(arguments.data), arguments.column, samples, seed)
    found = texts.statistics(model, kind, drawn, longest=longest)
    path = collect.save(model, kind, found)
    if arguments.json:
        print(json.dumps({"out": str(path), "samples": len(drawn), "tensors": len(found)}))
    else:
        print(f"{path}: {kind} statistics of {len(found)} tensors from {len(drawn)} texts")
    return 0


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"seed = {text!r} must be a number, at least 0")
    return int(text)


def _merge_adapters(arguments: Namespace) -> int:
    """Merge adapters of one model into an adapter."""
    from lifelong import settings
    from lifelong.errors import unknown
    from lifelong.merging.lora import merge_adapters
    from lifelong.merging.rules import RULES

    if arguments.out is None:
        raise InputError("--out is missing: a folder for the result")
    if arguments.rule not in RULES:
        raise unknown("merge rule", arguments.rule, RULES)
    kind = RULES[arguments.rule]
    values = {name.partition(".")[2]: each for name, each in arguments.dotted.items()}
    values = {
        kind.spelled.get(name, name): tuple(each) if isinstance(each, list) else each for name, each in values.items()
    }
    rule = settings.build(kind, values, f"merge rule {arguments.rule}")
    paths = [Path(path) for path in arguments.paths]
    ranks = merge_adapters(rule, paths, Path(arguments.out), rank=_count("rank", arguments.rank))
    if arguments.json:
        print(json.dumps({"out": arguments.out, "ranks": ranks}))
    else:
        print(f"{arguments.out}: an adapter of {len(ranks)} weights, ranks up to {max(ranks.values())}")
    return 0


def _planned(arguments: Namespace) -> tuple[Plan, Path]:
    """Return what is to be done, and where the result goes."""
    from lifelong.merging import adding, planning

    if arguments.into is not None:
        if arguments.rule or arguments.base or arguments.out or arguments.out_dtype:
            raise InputError("--into goes on with the rule, base and format of its folder: give none of them")
        return adding.added(Path(arguments.into), _models(arguments)[0]), Path(arguments.into)
    recipe, out = _asked(arguments)
    plan = planning.plan(recipe)
    return (adding.kept(plan) if arguments.keep_running else plan), out


def _asked(arguments: Namespace) -> tuple[MergeRecipe, Path]:
    """Return the recipe, and where the result goes."""
    from lifelong.merging import recipe

    paths, out = list(arguments.paths), arguments.out
    if arguments.rule is None:
        if arguments.dotted or arguments.base:
            raise InputError("--base and --rule.SETTING go with --rule; a recipe says these itself")
        if out is None and len(paths) == 2:
            out = paths.pop()
        if out is None or len(paths) != 1:
            raise InputError("give a recipe and a folder for the result, or --rule with models and --out")
        read = recipe.read(Path(paths[0]))
        if arguments.out_dtype:
            read = read.model_copy(update={"out_dtype": arguments.out_dtype})
        return read, Path(out)
    if out is None:
        raise InputError("--out is missing: a folder for the result")
    return recipe.parsed(_values(arguments), "the options"), Path(out)


def _models(arguments: Namespace) -> tuple[list[Values], Values]:
    """Return the models that are given, with parameters of their own, and the parameters that all share."""
    parameters = {name.partition(".")[2]: each for name, each in arguments.dotted.items()}
    models: list[Values] = [{"model": path, "parameters": {}} for path in arguments.paths]
    if not models:
        raise InputError("give the models to merge")
    for name in [name for name, each in parameters.items() if isinstance(each, list)]:
        numbers = parameters.pop(name)
        if len(numbers) != len(models):
            raise InputError(f"--rule.{name} has {len(numbers)} numbers for {len(models)} models")
        for model, number in zip(models, numbers, strict=True):
            model["parameters"][name] = number
    if arguments.into is not None:
        return [{**each, "parameters": {**parameters, **each["parameters"]}} for each in models], {}
    return models, parameters


def _values(arguments: Namespace) -> Values:
    """Return the recipe that options describe."""
    models, parameters = _models(arguments)
    values: Values = {"merge_method": arguments.rule, "models": models, "parameters": parameters}
    return {
        **values,
        **({"base_model": arguments.base} if arguments.base else {}),
        **({"out_dtype": arguments.out_dtype} if arguments.out_dtype else {}),
    }


def _watch(running: Iterator[Finished], tensors: int) -> None:
    """Draw a bar on a terminal while the merge runs."""
    if not sys.stderr.isatty():
        for _ in running:
            pass
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("merging", total=tensors)
        for each in running:
            bar.update(row, completed=each.done, description=each.name)


def _scores(plan: Plan, out: Path, command: str) -> Scores:
    """Return what the command says of every model that took part and of the merged one."""
    from lifelong.merging.evaluation import evaluated

    return {
        name: evaluated(command, path)
        for name, path in {**{n: m.path for n, m in plan.models.items()}, "merged": out}.items()
    }


def _normalised(plan: Plan, scores: Scores) -> Scores:
    """Return scores as shares of the best expert's."""
    from lifelong.merging.evaluation import normalised

    base = plan.recipe.get("base_model")
    experts = {name: each for name, each in scores.items() if name not in (base, "merged")}
    return {name: normalised(each, experts) for name, each in scores.items()}


def _show(
    plan: Plan, out: Path, seconds: float, scores: Scores, shares: Scores, page: Path | None, as_json: bool
) -> None:
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if as_json:
        shown = {"out": str(out), "tensors": len(plan.jobs), "bytes": written, "seconds": seconds}
        more = {**({"scores": scores, "normalised": shares} if scores else {}), **({"page": str(page)} if page else {})}
        print(json.dumps({**shown, **more}))
        return
    print(f"{out}: {len(plan.jobs)} tensors, {written:,} bytes, {seconds:.1f} s")
    for name, each in scores.items():
        spelled = ", ".join(
            f"{task} {score:.4g} ({shares[name][task]:.1%} of the best expert)" for task, score in each.items()
        )
        print(f"{name}: {spelled}")
    if page:
        print(page)


def _count(name: str, text: str | None) -> int | None:
    if text is not None and (not text.isdecimal() or int(text) == 0):
        raise InputError(f"{name} = {text!r} must be a number, at least 1")
    return None if text is None else int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise InputError(f"energy = {text!r} must be a share, above 0 to 1")
    return share
