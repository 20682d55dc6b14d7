"""What the page of `collab report` shows, read from the folders of one or two runs as plain data.

A run is read from its files: `config.yaml`, `run.json`, `results.json` if it is finished, `csv/metrics.csv`,
`transcripts*.jsonl`, `goals*.jsonl` and `problems*.json`. Nothing is computed anew but MR, the mean R* of a
candidate's futures, and differences between two runs.

An item of the page is either

- a group: a context of a training step, its candidates and their futures; or
- a goal of a test or a validation, with one conversation per policy, or per step for a validation. Each user of
  `evaluation.users` has items of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.reports.merge import read_results
from collab.reports.plots import QUANTITIES, read_curves
from collab.reports.results import PolicyScores, baseline_of, summarise, summarise_rows, user_of
from collab.reports.tables import columns_of, estimate_cell, header_of, num_goals_of
from collab.util.diff import changes
from collab.util.errors import BadInput

LARGEST = 14_000_000  # bytes of conversations and their goals in a page

Item = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
        folder: Of the run.
        label: Its name on the page.
        config: The resolved config.
        state: `run.json`.
        results: "policies" and "difference"; of an unfinished run, for the rows that are finished.
        finished: Whether it has a `results.json`.
        records: The lines of each file of transcripts.
        goals: (phase, id) -> goal.
        problems: Phase -> kind -> count.
    """

    folder: Path
    label: str
    config: dict[str, Any]
    state: dict[str, Any]
    results: Mapping[str, Any]
    finished: bool
    records: Sequence[Sequence[dict[str, Any]]]
    goals: Mapping[tuple[str, str], dict[str, Any]]
    problems: Mapping[str, Mapping[str, int]]


def read_run(folder: Path, label: str = "") -> RunFiles:
    """Read the files of a run, finished or not.

    Raises:
        BadInput: It is not the folder of a run, or a file in it is damaged.
    """
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        inside = sorted(path.parent for path in folder.glob("*/run.json"))
        way = f"such as {inside[0]}" if inside else "such as outputs/doc_edit/2026-01-31_12-00-00-seed1"
        what = "has no run.json and config.yaml" if folder.is_dir() else "is no folder"
        raise BadInput(
            f"{folder} is not the folder of a run: it {what}. Name a folder that train.py or evaluate.py wrote, {way}."
        )
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        state = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise BadInput(f"{folder}: run.json or config.yaml is damaged ({error}). Name another run.") from error
    finished = (folder / "results.json").is_file()
    if finished:
        results = read_results(folder / "results.json")
    else:
        baseline = config["evaluation"]["baseline"]
        results = summarise_rows(state["scores"], baseline=baseline, seed=config["seed"], aggregates={})
    problems: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("problems*.json")):
        for phase, counts in json.loads(path.read_bytes()).items():
            problems.setdefault(phase, Counter()).update(counts)
    goals = [line for path in sorted(folder.glob("goals*.jsonl")) for line in _lines(path)]
    if not goals and any(folder.glob("transcripts*.jsonl")):
        raise BadInput(
            f"{folder} has transcripts but no goals.jsonl: an earlier version of collab wrote it. Name a run of this "
            "version, or run it again."
        )
    return RunFiles(
        folder,
        label or folder.name,
        config,
        state,
        results,
        finished,
        [list(_lines(path)) for path in sorted(folder.glob("transcripts*.jsonl"))],
        {(goal["phase"], goal["id"]): goal for goal in goals},
        problems,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines. A last line without an end is left out: the run may be at work."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line, parse_constant=lambda _: None)  # NaN is no JSON to a browser
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: not JSON ({error}). Delete that line and try again.") from error


def as_json(value: Any) -> str:
    """JSON as it is in a page. No `<` is in it, so no text of a run can end the script element around it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


# --- the page --------------------------------------------------------------------------------------------------------


def page_data(runs: Sequence[RunFiles], largest: int = LARGEST) -> dict[str, Any]:
    """All that the page shows, as JSON-ready data; page/report.js says what is what.

    Args:
        runs: One, or two to be compared.
        largest: Bytes that the items and their goals may take. Those of training steps are left out first, so that the
            steps that stay are spread evenly over the run.
    """
    goals = _Goals()
    items = _goal_items(runs, goals)
    for number, run in enumerate(runs):
        items += _group_items(number, run, goals)
    kept = _within(items, goals.entries, largest)
    left_out = _conversations(items) - _conversations(kept)
    used = list(dict.fromkeys(item["goal"] for item in kept))
    places = {goal: place for place, goal in enumerate(used)}
    weights = [{name: entry["weight"] for name, entry in run.config["task"]["metrics"].items()} for run in runs]
    parts = [*dict.fromkeys(name for one in weights for name in one)]
    return {
        "title": " against ".join(run.label for run in runs),
        "runs": [_about(run) for run in runs],
        "differences": changes(runs[0].config, runs[1].config, _IGNORED.__contains__) if len(runs) > 1 else [],
        "table": _table(runs),
        "curves": _curves(runs),
        "weights": weights,
        "labels": dict(zip(parts, header_of(parts)[1:], strict=True)),
        "goals": [goals.entries[goal] for goal in used],
        "items": [{**item, "goal": places[item["goal"]]} for item in kept],
        "leftOut": dict(left_out),
    }


_IGNORED = ("output_dir",)


def _about(run: RunFiles) -> dict[str, Any]:
    config = run.config
    sampler, trainer = config["sampler"], config["trainer"]
    facts = {
        "folder": str(run.folder),
        "command": run.state["entry"],
        "started": run.state["started"][:19].replace("T", " "),
        "hours": round(sum(run.state["seconds"].values()) / 3600, 2),
        "seed": config["seed"],
        "model": config["model"]["path"] or config["model"]["name"],
        "task": config["task"]["name"],
        "user": config["user"]["target"].rpartition(".")[2],
        "judge": config["judge"]["name"],
    }
    if run.state["entry"] == "train":
        facts |= {
            "algorithm": config["algorithm"]["name"],
            "steps": trainer["max_steps"],
            "goals per step": trainer["goals_per_step"],
            "candidates": sampler["group_size"],
            "futures per candidate": sampler["num_samples"] if sampler["window"] else 1,
            "window": sampler["window"],
        }
    problems = {phase: dict(counts) for phase, counts in run.problems.items()}
    return {
        "label": run.label,
        "seed": config["seed"],
        "facts": facts,
        "finished": run.finished,
        "problems": problems,
        "paired": bool(sampler["paired"]),
        "baseline": config["evaluation"]["baseline"],
    }


def _table(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """The summary: a row per policy, then one per difference."""
    labelled = {
        _named(run, policy, runs): metrics for run in runs for policy, metrics in run.results["policies"].items()
    }
    columns, num_goals = columns_of(labelled), num_goals_of(labelled)
    if len(runs) == 1:
        results = runs[0].results
        compared = results.get("difference", {}).items()
        differences = {f"{name} − {baseline_of(results, name)}": row for name, row in compared}
    else:
        differences = _between(runs)

    def row(label: str, metrics: Mapping[str, Any], signed: bool) -> dict[str, Any]:
        cells = []
        for metric in columns:
            estimate = metrics.get(metric)
            main, interval = estimate_cell(estimate, metric, num_goals, signed=signed)
            known = estimate is not None and estimate["mean"] is not None
            sure = signed and known and not _holds_zero(metrics[metric]["ci95"])
            cells.append({"mean": main, "interval": interval, **({"sure": True} if sure else {})})
        return {"label": label, "difference": signed, "cells": cells}

    rows = [row(name, metrics, False) for name, metrics in labelled.items()]
    rows += [row(name, metrics, True) for name, metrics in differences.items()]
    return {"columns": header_of(columns), "rows": rows, "numGoals": num_goals}


def _holds_zero(interval: Sequence[float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _named(run: RunFiles, policy: str, runs: Sequence[RunFiles]) -> str:
    return policy if len(runs) == 1 else f"{run.label}: {policy}"


def _between(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Label -> metric -> estimate: each policy of both runs, the second run's minus the first run's, paired by goal.

    A goal that is not the same in both, although its id is, has no pair.
    """
    first, second = runs

    def same(goal: str) -> bool:
        return _goal(first, "test", goal) == _goal(second, "test", goal)

    def shared(scores: PolicyScores) -> PolicyScores:
        return {metric: {goal: goals[goal] for goal in filter(same, goals)} for metric, goals in scores.items()}

    found = {}
    for policy in first.state["scores"]:
        if policy in second.state["scores"]:
            scores: dict[str, PolicyScores] = {
                "1": first.state["scores"][policy],
                "2": shared(second.state["scores"][policy]),
            }
            both = summarise(scores, baseline="1", seed=first.config["seed"], aggregates={})
            found[f"{policy}: {second.label} − {first.label}"] = both["difference"]["2"]
    return found


def _curves(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """One per quantity: title, whether it is one of the main ones, and its lines."""
    read = [read_curves(run.folder / "csv" / "metrics.csv") for run in runs]
    quantities = dict.fromkeys(quantity for curves in read for _, quantity in curves)
    order = [name for name in QUANTITIES if name in quantities]
    order += sorted(name for name in quantities if name not in QUANTITIES)
    found = []
    for quantity in order:
        lines = [
            # metrics.csv counts steps from 0, transcripts from 1
            {"run": number, "split": split, "points": [(step + 1, value) for step, value in sorted(points.items())]}
            for number, curves in enumerate(read)
            for (split, name), points in curves.items()
            if name == quantity
        ]
        title = QUANTITIES.get(quantity, quantity.replace("_", " "))
        found.append({"title": title, "main": quantity in QUANTITIES, "lines": lines})
    return found


# --- conversations ---------------------------------------------------------------------------------------------------


def _conversation(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the page shows it: messages that know what belongs to them."""
    refused: dict[int, list[list[str]]] = {}
    for refusal in record.get("refused", ()):
        refused.setdefault(refusal["turn"], []).append([refusal["kind"], refusal["text"]])
    messages: list[dict[str, Any]] = []
    turn = 0
    for message in record["messages"]:
        shown = {"role": message["role"], "text": message["content"]}
        if message["role"] == "user":
            turn += 1
            if turn in refused:
                shown["refused"] = refused.pop(turn)
        elif message["role"] == "assistant":
            shown["tokens"] = record["reply_tokens"][turn - 1]
            if record["finish_reasons"][turn - 1] == "length":
                shown["cut"] = True
            if thoughts := record.get("thoughts"):
                shown["thought"] = thoughts[turn - 1]
            if lengths := record.get("token_lengths", {turn - 1: []})[turn - 1]:
                shown |= {"lengths": lengths, "logprobs": record["logprobs"][turn - 1]}
        messages.append(shown)
    return {
        "reward": record["reward"],
        "parts": record["parts"],
        "end": record["ended_by"],
        "messages": messages,
        **{name: record[name] for name in ("judge", "user") if record.get(name)},
        **({"refused": [pair for pairs in refused.values() for pair in pairs]} if refused else {}),
    }


def _goal(run: RunFiles, phase: str, goal: str) -> dict[str, Any]:
    """A goal as the page shows it."""
    known = run.goals.get((phase, goal), {})
    return {"id": goal, **{name: known[name] for name in ("prompt", "reference", "metadata") if known}}


class _Goals:
    """The goals of a page, each once. A goal that both runs have is the same only if all of it is."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def place(self, run: RunFiles, phase: str, goal: str) -> int:
        """Place of a goal in `entries`, where it is put if it is not there."""
        entry = _goal(run, phase, goal)
        place = self._places.setdefault(json.dumps(entry, sort_keys=True), len(self.entries))
        if place == len(self.entries):
            self.entries.append(entry)
        return place


def _goal_items(runs: Sequence[RunFiles], goals: _Goals) -> list[Item]:
    """Tests, then validations: for each goal and sample the conversations of all policies or steps, of both runs."""
    items: dict[tuple[Any, ...], Item] = {}
    for number, run in enumerate(runs):
        played: Counter[tuple[Any, ...]] = Counter()
        for record in (record for records in run.records for record in records):
            phase, goal = record["phase"], record["goal"]
            if phase == "train":
                continue
            who = record["policy"] if phase == "test" else f"step {record['step']}"
            sample = played[phase, who, goal]
            played[phase, who, goal] += 1
            index = goals.place(run, phase, goal)
            # A validation belongs to its run; the tests of both runs stand side by side.
            owner, user = (number, "") if phase == "validation" else (0, user_of(who))
            place = (phase, index, sample, owner, user)
            if place not in items:
                head = {"phase": phase, "run": owner, "goal": index, "sample": sample, "user": user}
                items[place] = {**head, "variants": []}
            name = _named(run, who, runs) if phase == "test" else who
            items[place]["variants"].append({"name": name, "run": number, **_conversation(record)})
    return sorted(items.values(), key=lambda item: item["phase"] != "test")


def _group_items(number: int, run: RunFiles, goals: _Goals) -> list[Item]:
    """The trees of the training steps."""
    items = []
    for records in run.records:  # of one process: its numbers of groups are its own
        groups: dict[tuple[int, int], dict[int, list[dict[str, Any]]]] = {}
        for record in records:
            if record["phase"] == "train":
                group = groups.setdefault((record["step"], record["group"]), {})
                group.setdefault(record["candidate"], []).append(record)
        for (step, group_number), candidates in groups.items():
            first = next(iter(candidates.values()))[0]
            goal = goals.place(run, "train", first["goal"])
            turn = first["turn"]
            shown = [_candidate(futures, turn) for _, futures in sorted(candidates.items())]
            context = _split(_conversation(first)["messages"], turn)[0]
            items.append(
                {
                    "phase": "train",
                    "run": number,
                    "goal": goal,
                    "step": step,
                    "group": group_number,
                    "number": first["number"],
                    "turn": turn,
                    "context": context,
                    "candidates": shown,
                }
            )
    return items


def _split(messages: Sequence[dict[str, Any]], turn: int) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    """The context, the candidate's reply, and the future behind it."""
    replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    place = replies[turn - 1]
    return list(messages[:place]), messages[place], list(messages[place + 1 :])


def _candidate(records: Sequence[dict[str, Any]], turn: int) -> dict[str, Any]:
    """A candidate with its MR (Eq. 1)."""
    futures = []
    for record in sorted(records, key=lambda record: record["sample"]):
        conversation = _conversation(record)
        _, reply, conversation["messages"] = _split(conversation["messages"], turn)
        futures.append(conversation)
    rewards = [future["reward"] for future in futures if future["reward"] is not None]
    return {
        "reply": reply,
        "mr": fmean(rewards) if rewards else None,
        "trained": records[0]["trained"],
        "advantage": records[0].get("advantage"),
        "futures": futures,
    }


def _conversations(items: Sequence[Item]) -> Counter[str]:
    """Phase -> conversations in its items."""
    found: Counter[str] = Counter()
    for item in items:
        variants = item["variants"] if "variants" in item else [f for c in item["candidates"] for f in c["futures"]]
        found[item["phase"]] += len(variants)
    return found


def _within(items: Sequence[Item], goals: Sequence[Mapping[str, Any]], largest: int) -> list[Item]:
    """The items that fit, in their order: tests and validations first, then training steps spread over the run."""
    steps = _spread(sorted({item["step"] for item in items if item["phase"] == "train"}))
    rank = {step: place for place, step in enumerate(steps, start=1)}
    order = sorted(range(len(items)), key=lambda place: rank[items[place]["step"]] if "step" in items[place] else 0)
    kept, used, counted = set(), 0, set()
    for place in order:
        item = items[place]
        used += _bytes(item)
        if item["goal"] not in counted:  # it is in the page once
            counted.add(item["goal"])
            used += _bytes(goals[item["goal"]])
        if used > largest:
            break
        kept.add(place)
    return [item for place, item in enumerate(items) if place in kept]


def _bytes(value: Any) -> int:
    """Of a value in a page, with the comma behind it."""
    return len(as_json(value).encode(errors="replace")) + 1


def _spread(steps: Sequence[int]) -> list[int]:
    """First, last, middle, then the middles of the halves, and so on."""
    found, spans = [*steps[:1], *steps[1:][-1:]], [(0, len(steps) - 1)]
    for low, high in spans:  # it grows
        middle = (low + high) // 2
        if low < middle < high:
            found.append(steps[middle])
            spans += [(low, middle), (middle, high)]
    return found
