"""results.json, its tables and curves, and the merging of seeds."""

import copy
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from collab.reports import merge
from collab.reports.aggregates import (
    ACTS_ON_CLEAR,
    ANSWERS,
    ASKS,
    ASKS_ON_VAGUE,
    act_f1,
    ask_f1,
    macro_accuracy,
    macro_f1,
)
from collab.reports.plots import training_curves
from collab.reports.results import Aggregate, PolicyScores, baseline_of, summarise, validate_results
from collab.reports.tables import Row, markdown, results_table
from collab.util.errors import BadInput
from collab.util.files import write_json


def summary(
    scores: dict[str, PolicyScores],
    seed: int = 1,
    baseline: str = "base",
    aggregates: Mapping[str, Aggregate] = MappingProxyType({}),
) -> dict[str, Any]:
    return summarise(scores, seed=seed, baseline=baseline, aggregates=aggregates)


def whole() -> dict[str, Any]:
    """A small valid results.json."""
    scores: dict[str, PolicyScores] = {
        "base": {
            "reward": {"a": [0.1, 0.3], "b": [0.0], "c": [0.25]},
            "interactivity": {"a": [0.5], "b": [0.25], "c": [0.0]},
            "assistant_tokens": {"a": [130.0], "b": [140.0], "c": [144.0]},
        },
        "trained": {
            "reward": {"a": [0.6], "b": [0.5], "c": [None]},
            "interactivity": {"a": [1.0], "b": [0.5], "c": [0.75]},
            "assistant_tokens": {"a": [80.0], "b": [90.0], "c": [100.0]},
        },
    }
    return {**summary(scores), "config": {"seed": 1, "output_dir": "x"}, "seconds": {"total": 12.5}}


# -- summarise


def test_means_are_over_goals_and_missing_values_are_left_out() -> None:
    found = summary({"base": {"reward": {"a": [0.0, 1.0, 0.5], "b": [1.0, None], "c": [None, None], "d": []}}})
    # a: 1.5 / 3 = 0.5; b: 1.0; c and d have no value. A mean over conversations would be 2.5 / 4.
    assert found["policies"]["base"]["reward"]["mean"] == 0.75
    assert found["policies"]["base"]["reward"]["n"] == 2
    low, high = found["policies"]["base"]["reward"]["ci95"]
    assert 0.5 <= low < 0.75 < high <= 1.0


def test_no_goal_and_one_goal() -> None:
    metrics = summary({"base": {"reward": {"a": [None]}, "bleu": {"a": [0.3, 0.1]}}})["policies"]["base"]
    assert metrics["reward"] == {"mean": None, "ci95": [None, None], "n": 0}
    assert metrics["bleu"] == {"mean": 0.2, "ci95": [0.2, 0.2], "n": 1}


def test_difference_pairs_the_goals_that_both_have() -> None:
    base: dict[str, list[float | None]] = {"a": [0.0], "b": [1.0], "c": [0.5], "only_base": [9.0]}
    other: dict[str, list[float | None]] = {"c": [0.75], "b": [1.25], "a": [0.25], "only_other": [-9.0]}
    found = summary({"base": {"reward": base}, "other": {"reward": other, "bleu": {"a": [1.0]}}})
    # Goals differ by up to 1, every pair by exactly 0.25: an unpaired interval would be wide.
    assert found["difference"] == {"other": {"reward": {"mean": 0.25, "ci95": [0.25, 0.25], "n": 3}}}


def test_difference_needs_the_baseline_among_the_rows() -> None:
    scores: dict[str, PolicyScores] = {"x": {"reward": {"a": [0.0]}}, "y": {"reward": {"a": [1.0]}}}
    assert summary(scores)["difference"] == {}
    assert list(summary(scores, baseline="y")["difference"]) == ["x"]
    assert summary(scores, baseline="y")["difference"]["x"]["reward"]["mean"] == -1.0


def test_interval_spans_the_resampled_means() -> None:
    """Two goals 0 and 1: a resampled mean is 0, 0.5 or 1 with odds 1:2:1, so the interval spans all of it."""
    assert summary({"base": {"reward": {"a": [0.0], "b": [1.0]}}})["policies"]["base"]["reward"]["ci95"] == [0.0, 1.0]


# a decision for each goal: right (1) or wrong (0) on ambiguous goals, and on the others
DECISIONS: PolicyScores = {
    "reward": {"a": [1.0], "b": [0.0], "c": [0.0], "d": [1.0]},
    ASKS: {"a": [1.0], "b": [0.0], "c": [0.0], "d": [None]},
    ANSWERS: {"a": [None], "b": [None], "c": [None], "d": [1.0]},
}
AGGREGATES: dict[str, Aggregate] = {"macro_accuracy": macro_accuracy, "macro_f1": macro_f1}


def test_aggregates_by_hand() -> None:
    found = summary({"base": DECISIONS}, aggregates=AGGREGATES)["policies"]["base"]
    # Asks on 1 of 3 ambiguous questions, answers the other one: (1/3 + 1) / 2.
    assert found["macro_accuracy"]["mean"] == pytest.approx(2 / 3) and found["macro_accuracy"]["n"] == 4
    # Asking: TP 1, FP 0, FN 2, F1 2/4. Answering: TP 1, FP 2, FN 0, F1 2/4.
    assert found["macro_f1"]["mean"] == pytest.approx(1 / 2)
    assert found[ASKS]["n"] == 3 and found[ANSWERS]["n"] == 1
    for name in AGGREGATES:
        low, high = found[name]["ci95"]
        assert 0 <= low < found[name]["mean"] < high <= 1


def test_aggregates_count_a_goal_by_the_share_of_its_conversations() -> None:
    halves: PolicyScores = {ASKS: {"a": [1.0, 0.0]}, ANSWERS: {"b": [1.0, 1.0]}}
    found = summary({"base": {**halves, "reward": {"a": [0.5], "b": [1.0]}}}, aggregates=AGGREGATES)["policies"]["base"]
    # asking: TP 1/2, FN 1/2, F1 1 / 1.5; answering: TP 1, FP 1/2, F1 2 / 2.5
    assert found["macro_f1"]["mean"] == pytest.approx((1 / 1.5 + 2 / 2.5) / 2)
    assert found["macro_accuracy"]["mean"] == 0.75


def test_f1_of_asking_and_of_acting_by_hand() -> None:
    """Each pair has a decision about both of its requests."""
    pairs: PolicyScores = {
        "reward": {pair: [1.0] for pair in "abcd"},
        ASKS_ON_VAGUE: {"a": [1.0], "b": [1.0], "c": [1.0], "d": [0.0]},
        ACTS_ON_CLEAR: {"a": [1.0], "b": [0.0], "c": [0.0], "d": [1.0]},
    }
    found = summary({"base": pairs}, aggregates={"ask": ask_f1, "act": act_f1})["policies"]["base"]
    # Asking: TP 3, FN 1, FP 2. Acting: TP 2, FN 2, FP 1.
    assert found["ask"]["mean"] == pytest.approx(6 / 9) and found["act"]["mean"] == pytest.approx(4 / 7)
    assert found["ask"]["n"] == 4
    always: PolicyScores = {"reward": {"a": [1.0]}, ASKS_ON_VAGUE: {"a": [1.0]}, ACTS_ON_CLEAR: {"a": [0.0]}}
    found = summary({"base": always}, aggregates={"ask": ask_f1, "act": act_f1})["policies"]["base"]
    assert found["ask"]["mean"] == pytest.approx(2 / 3) and found["act"]["mean"] == 0


@pytest.mark.parametrize("answers", [{ANSWERS: {"a": [None]}}, {}], ids=["unscored", "missing"])
def test_aggregates_of_one_kind_of_goals_have_no_figure(answers: PolicyScores) -> None:
    one: PolicyScores = {"reward": {"a": [1.0]}, ASKS: {"a": [1.0]}, **answers}
    results = summary({"base": one, "other": DECISIONS}, aggregates=AGGREGATES)
    for name in AGGREGATES:
        assert results["policies"]["base"][name] == {"mean": None, "ci95": [None, None], "n": 0}
        assert results["difference"]["other"][name] == {"mean": None, "ci95": [None, None], "n": 0}
    validate_results({**results, "config": {}, "seconds": {}})


def test_differences_of_aggregates_are_paired() -> None:
    goals = [f"{kind}{i}" for kind in "xy" for i in range(40)]
    rng = np.random.default_rng(0)
    right = {goal: float(rng.integers(2)) for goal in goals}
    base: PolicyScores = {
        "reward": {goal: [right[goal]] for goal in goals},
        ASKS: {goal: [right[goal] if goal[0] == "x" else None] for goal in goals},
        ANSWERS: {goal: [right[goal] if goal[0] == "y" else None] for goal in goals},
    }
    # better by exactly one half on every goal: an interval that pairs goals has no width
    better: PolicyScores = {
        metric: {goal: [None if one is None else one + 0.5 for one in ones] for goal, ones in values.items()}
        for metric, values in base.items()
    }
    results = summary({"base": base, "better": better}, aggregates=AGGREGATES)
    low, high = results["policies"]["base"]["macro_accuracy"]["ci95"]
    assert high - low > 0.1
    entry = results["difference"]["better"]["macro_accuracy"]
    assert [entry["mean"], *entry["ci95"]] == pytest.approx([0.5, 0.5, 0.5]) and entry["n"] == 80
    validate_results({**results, "config": {}, "seconds": {}})
    assert "F1" in text_of(results_table({**results, "config": {}, "seconds": {}}), 80)


def test_aggregates_depend_on_no_other_row() -> None:
    alone = summary({"base": DECISIONS}, aggregates=AGGREGATES)["policies"]["base"]
    reversed_goals: PolicyScores = {m: dict(reversed(goals.items())) for m, goals in DECISIONS.items()}
    beside = summary({"other": DECISIONS, "base": reversed_goals}, aggregates=AGGREGATES)["policies"]["base"]
    assert alone == beside


def test_interval_covers_the_truth_in_about_95_percent_of_draws() -> None:
    draws = np.random.default_rng(0)
    truth, covered = 0.3, 0
    for _ in range(300):
        values = draws.gamma(shape=2.0, scale=truth / 2, size=50)
        goals: dict[str, list[float | None]] = {str(index): [float(value)] for index, value in enumerate(values)}
        low, high = summary({"base": {"reward": goals}})["policies"]["base"]["reward"]["ci95"]
        covered += low <= truth <= high
    assert 0.9 <= covered / 300 <= 0.99


def test_repeats_and_depends_on_the_seed_alone() -> None:
    draws = np.random.default_rng(1)
    goals: dict[str, list[float | None]] = {str(index): [float(draws.normal())] for index in range(20)}
    backwards = dict(reversed(goals.items()))
    alone = summary({"base": {"reward": goals}})["policies"]["base"]["reward"]
    assert summary({"base": {"reward": goals}})["policies"]["base"]["reward"] == alone
    beside = summary({"first": {"reward": {"0": [1.0]}, "bleu": goals}, "base": {"reward": backwards}})
    assert beside["policies"]["base"]["reward"] == alone
    assert summary({"base": {"reward": goals}}, seed=2)["policies"]["base"]["reward"]["ci95"] != alone["ci95"]


def test_bad_scores_are_named() -> None:
    with pytest.raises(BadInput, match="reward of base, goal 'a'"):
        summary({"base": {"reward": {"a": [float("nan")]}}})


# -- the file


def test_written_file_is_valid_whole_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    results = whole()
    write_json(path, results)
    write_json(path, results)  # over the old one
    found = json.loads(path.read_text())
    assert found == results
    validate_results(found)
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def full_disk(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


MISSING = object()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("policies", MISSING, r"policies \(None\) must be an object"),
        ("config", [], r"config \(\[\]\)"),
        ("seconds", MISSING, "seconds"),
        ("seconds.total", -1, "seconds.total"),
        ("seconds.total", "long", "seconds.total"),
        ("policies", {}, "policies"),
        ("policies.base", 3, r"policies.base \(3\)"),
        ("policies.base.reward", MISSING, "policies.base .* must have a reward"),
        ("policies.base.reward", 0.5, r"policies.base.reward \(0.5\)"),
        ("policies.base.reward.n", MISSING, "policies.base.reward .* mean, ci95 and n"),
        ("policies.base.reward.n", 2.0, "policies.base.reward.n"),
        ("policies.base.reward.n", 0, "policies.base.reward .* null"),
        ("policies.base.reward.mean", None, "policies.base.reward.mean"),
        ("policies.base.reward.mean", float("nan"), "policies.base.reward.mean"),
        ("policies.base.reward.ci95", [0.1], "policies.base.reward.ci95"),
        ("policies.base.reward.ci95", [0.1, None], "policies.base.reward.ci95"),
        ("policies.base.reward.ci95", [0.2, 0.1], "policies.base.reward.ci95"),
        ("difference", [], "difference"),
        ("difference.trained.reward.ci95", "wide", "difference.trained.reward.ci95"),
        (
            "difference.trained.other",
            {"mean": 1.0, "ci95": [1.0, 1.0], "n": 1},
            r"difference.trained \(.*of that policy alone",
        ),
        ("difference.stranger", {}, "difference.stranger"),
        ("difference.base", {}, "every policy but the baseline"),
    ],
)
def test_validate_names_the_damaged_place(place: str, value: Any, message: str) -> None:
    results = copy.deepcopy(whole())
    validate_results(results)
    *parents, last = place.split(".")
    holder = results
    for parent in parents:
        holder = holder[parent]
    if value is MISSING:
        del holder[last]
    else:
        holder[last] = value
    with pytest.raises(BadInput, match=message):
        validate_results(results)


def test_validate_allows_what_may_be_absent() -> None:
    results = whole()
    del results["difference"]
    validate_results(results)
    validate_results({"policies": summary({"x": {"reward": {}}})["policies"], "config": {}, "seconds": {}})
    with pytest.raises(BadInput, match="one object"):
        validate_results([results])


# -- tables


def text_of(table: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def estimate(mean: float, low: float, high: float, n: int = 24) -> dict[str, Any]:
    return {"mean": mean, "ci95": [low, high], "n": n}


def known() -> dict[str, Any]:
    """Results with numbers that can be told apart, and as wide as they get."""
    base = {
        "turns": estimate(2.691, 2.592, 2.813),
        "assistant_tokens": estimate(138.4, 130.6, 144.2),
        "reward": estimate(-0.0123, -0.0312, 0.0321),
        "bleu": estimate(0.0161, 0.0052, 0.0303, n=23),
        "interactivity": estimate(0.1411, 0.0922, 0.2083),
    }
    proactive = {**base, "bleu": {"mean": None, "ci95": [None, None], "n": 0}}
    difference = {"reward": estimate(-0.1111, -0.1601, -0.0831), "turns": estimate(-0.2101, -0.3604, -0.0802)}
    return {
        "policies": {"base": base, "proactive": proactive},
        "difference": {"proactive": difference},
        "config": {"seed": 1},
        "seconds": {},
    }


@pytest.mark.parametrize("width", [80, 100])
def test_table_shows_every_number_unbroken(width: int) -> None:
    validate_results(known())
    text = text_of(results_table(known()), width)
    for shown in ("-0.012", "[-0.031,0.032]", "0.016", "[0.005,0.030]", "n=23", "138", "[131,144]", "2.69"):
        assert shown in text
    for shown in ("proactive", "− base", "-0.111", "[-0.160,-0.083]", "-0.21", "[-0.36,-0.08]", "24 goals"):
        assert shown in text
    assert "…" not in text
    assert text.index("R*") < text.index("BLEU") < text.index("turns")


@pytest.mark.parametrize("more", [1, 5, 6])
def test_a_table_of_many_metrics_goes_on_below_itself(more: int) -> None:
    results = known()
    for number in range(more):
        for metrics in results["policies"].values():
            metrics[f"share_{number}"] = estimate(0.5 + number / 100, 0.1, 0.9)
    text = text_of(results_table(results), 80)
    assert "…" not in text and text.count("24 goals") == 1 and text.index("turns") < text.index("24 goals")
    for number in range(more):
        assert f"0.5{number}0" in text
    assert text.count("proactive") == 2 * (2 + (more > 5))  # a row and a difference in each part


def test_table_takes_names_as_they_are() -> None:
    results = known()
    results["policies"]["[bold]mine|v2"] = results["policies"].pop("proactive")
    results["difference"] = {"[bold]mine|v2": results["difference"]["proactive"]}
    assert "[bold]mine|v2" in text_of(results_table(results), 100)
    assert "| [bold]mine\\|v2 |" in markdown(["policy"], [Row("[bold]mine|v2", ())], "caption")


def test_differences_show_their_sign_and_zero_has_none() -> None:
    results = known()
    results["difference"]["proactive"]["reward"] = estimate(0.25, -0.00001, 0.5)
    text = text_of(results_table(results), 80)
    assert "+0.250" in text and "[0.000,0.500]" in text


def test_table_without_a_baseline_has_policies_only() -> None:
    results = {"policies": known()["policies"], "config": {}, "seconds": {}}
    assert baseline_of(results) is None
    assert "−" not in text_of(results_table(results), 80)
    assert baseline_of(known()) == "base"


# -- merge


def save(path: Path, results: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))
    return str(path)


def seeds(folder: Path) -> list[str]:
    """Seeds 1 and 2: R* 0.2 and 0.5; only the second has `trained` and BLEU."""
    one = {"base": {"reward": estimate(0.2, 0.1, 0.3), "interactivity": estimate(0.5, 0.5, 0.5)}}
    two = copy.deepcopy(one)
    two["base"] |= {"reward": estimate(0.5, 0.4, 0.6), "bleu": estimate(0.125, 0.1, 0.15)}
    two["trained"] = {"reward": estimate(0.75, 0.7, 0.8)}
    difference = {"trained": {"reward": estimate(0.25, 0.125, 0.375)}}
    rest: dict[str, Any] = {"seconds": {"total": 1}}
    return [
        save(folder / "1" / "results.json", {"policies": one, "config": {"seed": 1, "output_dir": "o1"}, **rest}),
        save(
            folder / "2" / "results.json",
            {"policies": two, "difference": difference, "config": {"seed": 2, "output_dir": "o2"}, **rest},
        ),
    ]


def test_merge_shows_mean_range_and_each_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "merged.json"
    assert merge.main([*seeds(tmp_path), "--output", str(output), "--markdown"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""  # seed and output_dir are meant to differ
    assert lines[2] == "| base | 0.350 (0.200..0.500) | 0.125 (0.125..0.125) | 0.500 (0.500..0.500) |"
    assert lines[3] == "| · seed 1 | 0.200 [0.100, 0.300] | – | 0.500 [0.500, 0.500] |"
    assert lines[4] == "| · seed 2 | 0.500 [0.400, 0.600] | 0.125 [0.100, 0.150] | 0.500 [0.500, 0.500] |"
    assert lines[5:7] == ["| trained | 0.750 (0.750..0.750) | – | – |", "| · seed 2 | 0.750 [0.700, 0.800] | – | – |"]
    assert lines[7] == "| trained − base | +0.250 (0.250..0.250) | – | – |"
    assert lines[8] == "| · seed 2 | +0.250 [0.125, 0.375] | – | – |"
    merged = json.loads(output.read_text())
    mr = merged["policies"]["base"]["reward"]
    assert (mr["mean"], mr["min"], mr["max"]) == (0.35, 0.2, 0.5)
    assert mr["runs"]["seed 2"] == estimate(0.5, 0.4, 0.6)
    assert list(merged["difference"]["trained"]["reward"]["runs"]) == ["seed 2"]


def test_merge_draws_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert merge.main(seeds(tmp_path)) == 0
    text = capsys.readouterr().out
    for shown in ("0.350", "0.200..0.500", "· seed 1", "[0.100,0.300]", "+0.250", "[0.125,0.375]", "− base"):
        assert shown in text


def test_merge_leaves_a_missing_mean_out() -> None:
    none = {"mean": None, "ci95": [None, None], "n": 0}
    runs = {
        label: {"policies": {"base": {"reward": entry}}, "config": {}, "seconds": {}}
        for label, entry in (("a", none), ("b", estimate(0.5, 0.4, 0.6)))
    }
    found = merge.merge(runs)["policies"]["base"]["reward"]
    assert (found["mean"], found["min"], found["max"]) == (0.5, 0.5, 0.5)
    nothing = merge.merge({"a": runs["a"]})["policies"]["base"]["reward"]
    assert (nothing["mean"], nothing["min"], nothing["max"]) == (None, None, None)


def test_merge_warns_of_what_should_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = known(), known()
    first["config"] = {"seed": 1, "trainer": {"max_steps": 24, "seed": 5}, "same": [1]}
    second["config"] = {"seed": 1, "trainer": {"max_steps": 8, "seed": 6}, "same": [1], "extra": None}
    paths = [save(tmp_path / "a.json", first), save(tmp_path / "b.json", second)]
    assert merge.main([*paths, "--markdown"]) == 0
    printed = capsys.readouterr()
    assert ": trainer.max_steps, trainer.seed, extra." in printed.err
    assert "share a seed" in printed.err
    assert f"seed 1 ({paths[1]})" in printed.out


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[]", b'{"policies": {}}'])
def test_merge_refuses_missing_and_foreign_files(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    assert merge.main([*seeds(tmp_path), str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {path}: ")
    assert printed.err.count("\n") == 1


def test_merge_refuses_what_would_mislead_or_destroy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = seeds(tmp_path)
    before = Path(one).read_text()
    assert merge.main([one, two, one]) == 1
    assert "given twice" in capsys.readouterr().err
    assert merge.main([one, two, "--output", one]) == 1
    assert "one of the files" in capsys.readouterr().err
    assert Path(one).read_text() == before
    assert merge.main([one, two, "--output", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    other = json.loads(Path(two).read_text())
    other["difference"] = {"base": {"reward": estimate(-0.25, -0.375, -0.125)}}
    assert merge.main([two, save(tmp_path / "other.json", other)]) == 1
    assert "different baselines" in capsys.readouterr().err


# -- curves


def test_curves_are_drawn_from_sparse_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    columns = ["epoch", "step", "train/loss", "train/mr", "train/bleu", "val/reward"]
    drawn = []
    plot = Axes.plot

    def recorded(panel: Axes, *points: Any, **style: Any) -> Any:
        drawn.append((style["label"], *points))
        return plot(panel, *points, **style)

    monkeypatch.setattr(Axes, "plot", recorded)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in range(10):
            writer.writerow({"epoch": 0, "step": step, "train/loss": 1.0, "train/mr": 0.5 * step, "train/bleu": "nan"})
        writer.writerow({"epoch": 0, "step": 9, "val/reward": 0.8})
    picture = training_curves(path, tmp_path / "plots" / "curves.png")
    assert picture == tmp_path / "plots" / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    steps = tuple(range(10))
    assert drawn == [("training", steps, tuple(0.5 * step for step in steps)), ("validation", (9,), (0.8,))]


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert training_curves(path, tmp_path / "curves.png") is None
    path.write_text("step,train/loss,train/mr\n0,1.0,\n")
    assert training_curves(path, tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
