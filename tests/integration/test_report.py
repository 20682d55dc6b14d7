"""`collab report`: what the page says, and the page itself in a real Chromium."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composing import load_config
from run_folder import RunFolder, data_of, spoken

from collab.app.evaluate import write_page
from collab.reports.report import main, render, write_report
from collab.reports.run_data import as_json, page_data, read_run
from collab.util.errors import BadInput

ROOT = Path(__file__).parents[2]
HOSTILE = (
    '</script><script>document.title="broken"</script><img src=x onerror="document.title=\'broken\'">'
    "<!--<script> {data} &lt; \u202e gnitirw \u2028 \x00 \\u003c javascript:alert(1) 👋"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "first")
    run.spoil()
    return run.folder


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return page_data([read_run(folder)])


# --- the data --------------------------------------------------------------------------------------------------------


def records(folder: Path, phase: str) -> list[dict[str, Any]]:
    lines = (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["phase"] == phase]


def test_a_tree_has_the_context_the_candidates_and_their_futures_once(folder, data):
    trees = [item for item in data["items"] if item["phase"] == "train"]
    assert [(tree["step"], tree["group"], tree["number"], tree["turn"]) for tree in trees] == [
        *((1, 0, 0, 2), (1, 1, 1, 2), (1, 2, 2, 2)),
        *((2, 0, 3, 2), (2, 1, 4, 2), (2, 2, 5, 2)),
    ]
    played = [r for r in records(folder, "train") if (r["step"], r["group"]) == (2, 1)]
    tree = trees[4]
    for record in played:
        candidate = tree["candidates"][record["candidate"]]
        future = candidate["futures"][record["sample"]]
        messages = [*tree["context"], candidate["reply"], *future["messages"]]
        assert [{"role": m["role"], "content": m["text"]} for m in messages] == record["messages"]
        assert (future["reward"], future["parts"]) == (record["reward"], record["parts"])
        assert (candidate["trained"], candidate["advantage"]) == (record["trained"], record["advantage"])
    rewards = [[r["reward"] for r in played if r["candidate"] == number] for number in range(3)]
    assert [c["mr"] for c in tree["candidates"]] == pytest.approx([sum(both) / 2 for both in rewards])
    # The advantage is that of GRPO: deviations from the mean of the group, whose sum is 0, best first.
    advantages = [c["advantage"] for c in tree["candidates"]]
    assert sum(advantages) == pytest.approx(0) and max(advantages) > 0
    assert max(tree["candidates"], key=lambda c: c["mr"])["advantage"] == max(advantages)


def test_a_goal_of_the_test_has_every_policy_and_its_hidden_goal_beside_it(folder, data):
    items = [item for item in data["items"] if item["phase"] == "test"]
    assert [[variant["name"] for variant in item["variants"]] for item in items] == [["base", "trained"]] * 3
    goal = data["goals"][items[0]["goal"]]
    assert goal["id"] == records(folder, "test")[0]["goal"]
    assert goal["prompt"].startswith("Please write") and goal["metadata"]["notes"] and goal["reference"]
    assert items == [item for item in data["items"]][:3], "tests come first"


def test_a_validation_has_a_conversation_for_each_step(data):
    items = [item for item in data["items"] if item["phase"] == "validation"]
    assert [variant["name"] for variant in items[0]["variants"]] == ["step 1", "step 2"]


def test_messages_know_what_belongs_to_them(data):
    *_, cut, patience, unscored, invalid = [item for item in data["items"] if item["phase"] == "validation"]
    assert cut["variants"][0]["messages"][-1]["cut"] is True
    assert patience["variants"][0]["end"] == "patience"
    assert unscored["variants"][0]["judge"] == {"interactivity": ["no JSON"]}
    # The first refused message belongs to the first turn, the second to a turn that never opened.
    assert invalid["variants"][0]["messages"][1]["refused"] == [["leak", '{"message": "all that I want"}']]
    assert invalid["variants"][0]["refused"] == [["stop", "[[SATISFIED]]"]]
    tree = next(item for item in data["items"] if item["phase"] == "train")
    reply = tree["candidates"][0]["reply"]
    assert sum(reply["lengths"]) == len(reply["text"]) and len(reply["logprobs"]) == len(reply["lengths"])
    assert not any("lengths" in message for message in tree["context"]), "the context was sampled for another purpose"


def test_the_table_has_the_numbers_and_intervals_of_the_results(folder, data):
    results = json.loads((folder / "results.json").read_text())
    rows = {row["label"]: row for row in data["table"]["rows"]}
    assert list(rows) == ["base", "trained", "trained − base"]
    place = data["table"]["columns"].index("coverage") - 1
    estimate = results["difference"]["trained"]["coverage"]
    cell = rows["trained − base"]["cells"][place]
    assert cell["mean"] == f"{estimate['mean']:+.3f}"
    assert cell["interval"] == f"[{estimate['ci95'][0]:.3f}, {estimate['ci95'][1]:.3f}]"
    assert cell.get("sure", False) == (estimate["ci95"][0] > 0)


def test_curves_count_steps_as_the_trees_do(data):
    curves = {curve["title"]: curve for curve in data["curves"]}
    assert curves["multiturn-aware reward (MR)"]["lines"][0]["points"] == [(1, 0.5), (2, 1.5)]
    assert curves["loss"]["main"] is False


def bytes_of(data: dict[str, Any], items: list[dict[str, Any]]) -> int:
    """Items and their goals, each with a comma, in a page."""
    goals = [data["goals"][place] for place in {item["goal"] for item in items}]
    return sum(len(as_json(value).encode()) + 1 for value in [*items, *goals])


def test_of_a_large_run_tests_stay_and_training_steps_that_are_spread(tmp_path):
    def tags(who, draws):
        return f"<b>{spoken(who, draws)}</b>"  # each < takes six bytes

    run = read_run(RunFolder(tmp_path / "large", goals=1, steps=9, candidates=2, samples=1, say=tags).folder)
    whole = page_data([run])
    trees = [item for item in whole["items"] if item["phase"] == "train"]
    fixed = [item for item in whole["items"] if item["phase"] != "train"]
    spread = [*fixed, *(tree for tree in trees if tree["step"] in (1, 5, 9))]
    part = page_data([run], largest=bytes_of(whole, spread))
    assert [item["step"] for item in part["items"] if item["phase"] == "train"] == [1, 5, 9]
    assert [item for item in part["items"] if item["phase"] != "train"] == fixed
    assert (whole["leftOut"], part["leftOut"]) == ({}, {"train": 12})
    assert [part["goals"][item["goal"]] for item in part["items"]] == [whole["goals"][i["goal"]] for i in spread]
    assert {item["goal"] for item in part["items"]} == set(range(len(part["goals"]))), "the other goals are left out"
    less = page_data([run], largest=bytes_of(whole, spread) - 1)
    assert [item["step"] for item in less["items"] if item["phase"] == "train"] == [1, 9]


def test_of_a_run_that_is_too_large_without_training_steps_the_page_says_so(folder):
    run = read_run(folder)
    whole = page_data([run])
    part = page_data([run], largest=bytes_of(whole, whole["items"][:2]))
    assert part["items"] == whole["items"][:2]
    assert part["leftOut"] == {"test": 2, "validation": 10, "train": 36}


def test_two_runs_are_compared_goal_by_goal(folder, tmp_path):
    second = RunFolder(tmp_path / "second", seed=2).folder
    found = page_data([read_run(folder), read_run(second)])
    labels = [row["label"] for row in found["table"]["rows"]]
    assert labels == [
        *("first: base", "first: trained", "second: base", "second: trained"),
        *("base: second − first", "trained: second − first"),
    ]
    scores = [json.loads((run / "run.json").read_text())["scores"]["trained"]["reward"] for run in (folder, second)]
    by_hand = sum(scores[1][goal][0] - scores[0][goal][0] for goal in scores[0]) / 3
    assert found["table"]["rows"][-1]["cells"][0]["mean"] == f"{by_hand:+.3f}"
    test = next(item for item in found["items"] if item["phase"] == "test")
    assert [(v["name"], v["run"]) for v in test["variants"]] == [
        *(("first: base", 0), ("first: trained", 0), ("second: base", 1), ("second: trained", 1)),
    ]
    assert any(line.startswith("seed is 1") for line in found["differences"])
    assert {item["run"] for item in found["items"] if item["phase"] == "train"} == {0, 1}


def test_goals_of_one_id_that_differ_are_no_pair(folder, tmp_path):
    second = RunFolder(tmp_path / "second", seed=2).folder
    goals = [json.loads(line) for line in (second / "goals.jsonl").read_text().splitlines()]
    changed = next(goal for goal in goals if goal["phase"] == "test")
    changed["reference"] += " And more."
    (second / "goals.jsonl").write_text("".join(json.dumps(goal) + "\n" for goal in goals))
    found = page_data([read_run(folder), read_run(second)])
    first, then = (
        json.loads((run / "run.json").read_text())["scores"]["trained"]["reward"] for run in (folder, second)
    )
    by_hand = sum(then[goal][0] - first[goal][0] for goal in first if goal != changed["id"]) / 2
    cell = found["table"]["rows"][-1]["cells"][0]
    assert cell["mean"] == f"{by_hand:+.3f}" and cell["interval"].endswith(" n=2")
    tests = [item for item in found["items"] if item["phase"] == "test"]
    assert [len(item["variants"]) for item in tests] == [2, 4, 4, 2]


@pytest.mark.parametrize("finished", [True, False])
def test_each_user_of_an_evaluation_has_its_baseline_and_its_conversations(finished, tmp_path):
    run = RunFolder(tmp_path / "run", goals=2, steps=1, users=["blunt"])
    if not finished:
        (run.folder / "results.json").unlink()
    found = page_data([read_run(run.folder)])
    rows = {row["label"]: row["cells"] for row in found["table"]["rows"]}
    assert list(rows) == [
        *("base", "trained", "base@blunt", "trained@blunt"),
        *("trained − base", "trained@blunt − base@blunt"),
    ]
    scores = json.loads((run.folder / "run.json").read_text())["scores"]
    base, trained = scores["base@blunt"]["reward"], scores["trained@blunt"]["reward"]
    by_hand = sum(trained[goal][0] - base[goal][0] for goal in base) / 2
    assert rows["trained@blunt − base@blunt"][0]["mean"] == f"{by_hand:+.3f}"
    items = [item for item in found["items"] if item["phase"] == "test"]
    assert [(item["user"], item["goal"], [v["name"] for v in item["variants"]]) for item in items] == [
        *[("", goal, ["base", "trained"]) for goal in (0, 1)],
        *[("blunt", goal, ["base@blunt", "trained@blunt"]) for goal in (0, 1)],
    ]


def test_an_unfinished_run_has_a_page_too(tmp_path):
    folder = RunFolder(tmp_path / "run", finished=False).folder
    with (folder / "transcripts.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')  # at work
    found = page_data([read_run(folder)])
    assert not found["runs"][0]["finished"]
    assert [row["label"] for row in found["table"]["rows"]] == ["base"]


def test_the_page_of_processes_that_trained_together_has_the_groups_of_all(folder, tmp_path):
    both = shutil.copytree(folder, tmp_path / "both")
    shutil.copy(both / "transcripts.jsonl", both / "transcripts-rank1.jsonl")
    lines = (both / "transcripts-rank1.jsonl").read_text().splitlines(keepends=True)
    (both / "transcripts-rank1.jsonl").write_text("".join(line for line in lines if '"phase": "train"' in line))
    found = page_data([read_run(both)])
    trees = [item for item in found["items"] if item["phase"] == "train"]
    assert len(trees) == 12 and {len(candidate["futures"]) for tree in trees for candidate in tree["candidates"]} == {2}


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_page_is(folder, tmp_path, capsys):
    assert main([str(folder), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert capsys.readouterr().out.startswith(f"report: {(tmp_path / 'new' / 'page.html').as_uri()} (0.")
    assert data_of(tmp_path / "new" / "page.html")["title"] == "first"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_the_command_needs_no_torch(folder, tmp_path):
    code = (
        "import sys; from collab.reports.report import main; "
        "main(sys.argv[1:]); sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "--output", str(tmp_path / "page.html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing"], "missing is not the folder of a run: it is no folder. Name a folder that"),
        (["."], "has no run.json and config.yaml. Name a folder that train.py or evaluate.py wrote, such as "),
        (["{run}", "{run}"], "{run} is given twice. Name one run, or two different ones."),
        (["{run}", "a", "b"], "3 runs were given, and a page compares two at most. Name one or two."),
        (["{run}", "--output", "{run}/run.json/page.html"], "cannot be written"),
    ],
)
def test_bad_input_is_refused_in_words(arguments, told, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(run=folder) for argument in arguments]) == 1
    assert told.format(run=folder) in capsys.readouterr().err


def test_a_damaged_line_is_named(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    lines = (broken / "transcripts.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "transcripts.jsonl").write_bytes(lines[0] + b"{broken\n" + lines[1])
    with pytest.raises(BadInput, match=r"transcripts.jsonl, line 2: not JSON .* Delete that line"):
        read_run(broken)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("transcripts.jsonl", "{broken\n", "BadInput: {run}/transcripts.jsonl, line 1: not JSON"),
        ("transcripts.jsonl", '{"phase": "test"}\n', "KeyError: 'goal'"),
        ("report.html/file", "", "IsADirectoryError: "),
    ],
)
def test_a_finished_run_ends_well_without_its_page(name, content, told, folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    said: list[str] = []
    progress: Any = SimpleNamespace(say=said.append)
    write_page(load_config("train", ["experiment=doc_edit"], str(run)), progress)
    assert said[0].startswith(f"         report: not written ({told.format(run=run)}")
    assert said[0].endswith(f"); `collab report {run}` writes it again")
    assert (run / "results.json").is_file()


# --- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; a test that asks for it is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser: Any, page_file: Path, **options: Any) -> Iterator[Any]:
    """A page without a network; fails on any error, and on anything that it asks for."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True, **options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: None if request.url == page_file.as_uri() else wrong.append(request.url))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(page_file.as_uri())
    page.wait_for_selector("#list button, #list p")
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def page_file(folder: Path) -> Path:
    return write_report([folder])


browses = pytest.mark.browser


@browses
def test_a_tree_shows_best_and_worst_and_what_made_the_difference(browser, page_file, data):
    tree = next(item for item in data["items"] if item["phase"] == "train")
    order = sorted(tree["candidates"], key=lambda candidate: -candidate["mr"])
    best, worst = order[0], order[-1]
    with opened(browser, page_file) as page:
        page.select_option("#phase", "train")
        assert page.locator("#list button").count() == 6
        sides = page.locator("#detail .side")
        for side, candidate in ((sides.nth(0), best), (sides.nth(1), worst)):
            text = side.inner_text()
            assert candidate["reply"]["text"] in text and f"MR {candidate['mr']:.3f}" in text
            assert f"advantage {candidate['advantage']:+.3f}" in text
            assert candidate["futures"][0]["messages"][-1]["text"] in text
        weights = data["weights"][0]

        def value(candidate: Any, part: str) -> float:
            return sum(future["parts"][part] for future in candidate["futures"]) / 2

        gains = {part: weights[part] * (value(best, part) - value(worst, part)) for part in best["futures"][0]["parts"]}
        rows = page.locator("#detail .parts tbody tr")
        shown = {row.inner_text().split("\t")[0]: row.inner_text().split("\t")[-1] for row in rows.all()}
        labels = {data["labels"][part]: f"{gain:+.3f}" for part, gain in gains.items()}
        assert shown == labels
        largest = max(gains, key=lambda part: abs(gains[part]))
        assert rows.first.inner_text().startswith(data["labels"][largest])
        assert "much" in rows.first.get_attribute("class")
        assert page.locator("#detail .parts tfoot").inner_text().endswith(f"{best['mr'] - worst['mr']:+.3f}")
        assert data["goals"][tree["goal"]]["reference"] in page.locator("#detail .goal").inner_text()
        branches = page.locator("#detail details.branch > summary > b").all_inner_texts()
        numbers = [tree["candidates"].index(candidate) + 1 for candidate in order]
        assert [name for name in branches if name.startswith("Candidate")] == [f"Candidate {n}" for n in numbers]


@browses
def test_base_and_trained_stand_side_by_side_on_the_same_goal(browser, page_file, data):
    item = data["items"][0]
    base, trained = item["variants"]
    with opened(browser, page_file) as page:
        left, right = page.locator("#detail .side").all()
        assert base["messages"][2]["text"] in left.inner_text()
        assert trained["messages"][2]["text"] in right.inner_text()
        said = page.locator("#detail").inner_text()
        assert "Same goal, same randomness of the user" in said and 'seed=1, split="test"' in said
        better, worse = (("wins", "loses"), ("loses", "wins"))[base["reward"] < trained["reward"]]
        assert better in left.get_attribute("class") and worse in right.get_attribute("class")
        page.locator("#detail .side select").first.select_option(label="trained")
        assert trained["messages"][2]["text"] in page.locator("#detail .side").first.inner_text()


@browses
def test_the_page_says_what_it_leaves_out(browser, folder, tmp_path):
    run = read_run(folder)
    page_file = tmp_path / "page.html"
    page_file.write_text(render(page_data([run], largest=20_000)), encoding="utf-8")
    told = "Further conversations are only in transcripts.jsonl, since the page would be too large: "
    left_out = data_of(page_file)["leftOut"]
    assert left_out["train"] == 36
    with opened(browser, page_file) as page:
        said = page.locator("#count").inner_text()
        assert told in said and said.endswith(f"{left_out['train']} of training steps.")


@browses
def test_rows_of_a_further_user_stand_side_by_side(browser, tmp_path):
    run = RunFolder(tmp_path / "run", goals=1, steps=1, users=["blunt"])
    with opened(browser, write_report([run.folder])) as page:
        entries = page.locator("#list button")
        assert "test · user blunt · 2 conversations" in entries.nth(1).text_content()
        entries.nth(1).click()
        chosen = "(boxes) => boxes.map((box) => box.selectedOptions[0].text)"
        assert page.locator("#detail .side select").evaluate_all(chosen) == ["base@blunt", "trained@blunt"]
        assert page.locator("#detail h3").first.inner_text().endswith(", user blunt")


@browses
def test_each_of_two_runs_is_weighed_with_its_own_weights(browser, folder, tmp_path):
    other = ("task.metrics.coverage.weight=3.0", "task.metrics.bleu.weight=0.0")
    second = RunFolder(tmp_path / "second", goals=1, steps=1, overrides=other).folder
    page_file = write_report([folder, second], tmp_path / "page.html")
    found = data_of(page_file)
    first, then = found["weights"]
    assert first["coverage"] == 2.0 and (then["coverage"], then["bleu"]) == (3.0, 0.0)
    variants = found["items"][0]["variants"]
    one, two = variants[1], variants[3]
    assert (one["run"], two["run"]) == (0, 1)
    gains = {part: then[part] * two["parts"][part] - first[part] * one["parts"][part] for part in one["parts"]}
    assert sum(gains.values()) == pytest.approx(two["reward"] - one["reward"])
    with opened(browser, page_file) as page:
        rows = [row.inner_text().split("\t") for row in page.locator("#detail .parts tbody tr").all()]
        assert {row[0]: row[-1] for row in rows} == {found["labels"][part]: f"{g:+.3f}" for part, g in gains.items()}
        assert ["2 and 3"] == [row[1] for row in rows if row[0] == "coverage"]
        largest = max(gains, key=lambda part: gains[part] * (two["reward"] - one["reward"]))
        assert f"{found['labels'][largest]} ({gains[largest]:+.3f})" in page.locator("#detail").inner_text()
        page.select_option("#phase", "train")
        page.select_option("#run", "1")
        assert "3" in [row.inner_text().split("\t")[1] for row in page.locator("#detail .parts tbody tr").all()]


@browses
def test_search_and_filters_choose_what_is_listed(browser, page_file, data):
    with opened(browser, page_file) as page:

        def listed() -> int:
            page.wait_for_timeout(250)
            return page.locator("#list button").count()

        whole = len(data["items"])
        assert listed() == whole
        page.fill("#search", data["items"][1]["variants"][0]["messages"][2]["text"].upper())
        assert listed() == 1 and page.locator("#detail mark").count() >= 1
        page.fill("#search", "no such words")
        assert listed() == 0 and "Nothing fits" in page.locator("#list").inner_text()
        page.click("button[type=reset]")
        assert listed() == whole
        goal = data["goals"][data["items"][0]["goal"]]["id"]
        page.select_option("#goal", goal)
        assert listed() == 1
        page.click("button[type=reset]")
        page.select_option("#step", "2")
        assert listed() == 3 + 3  # trees, validations
        page.click("button[type=reset]")
        found = {}
        for kind in ("invalid", "no score", "user gave up", "reply cut", "user refused by a guard"):
            page.select_option("#failure", kind)
            found[kind] = listed()
        assert found == {"invalid": 1, "no score": 1, "user gave up": 1, "reply cut": 3, "user refused by a guard": 1}
        page.click("button[type=reset]")
        page.select_option("#metric", "coverage")
        page.fill("#low", "0.6")
        enough = [
            item
            for item in data["items"]
            if "variants" in item
            and (known := [v["parts"]["coverage"] for v in item["variants"] if v["parts"].get("coverage") is not None])
            and sum(known) / len(known) >= 0.6
        ]
        page.select_option("#phase", "test")
        assert listed() == len([item for item in enough if item["phase"] == "test"])
        page.click("button[type=reset]")
        page.select_option("#order", "down")
        listed()
        shown = [
            float(re.search(r"R\* (-?[\d.]+)", text)[1]) for text in page.locator("#list button").all_inner_texts()[:8]
        ]
        assert shown == sorted(shown, reverse=True)


@browses
def test_probabilities_and_what_guards_refused_are_shown_on_demand(browser, page_file, data):
    with opened(browser, page_file) as page:
        page.select_option("#phase", "train")
        assert page.locator("#detail .text span[title]").count() == 0
        page.check("#tokens")
        tree = next(item for item in data["items"] if item["phase"] == "train")
        best = max(tree["candidates"], key=lambda candidate: candidate["mr"])
        first = page.locator("#detail .side .message.assistant").first
        tokens = first.locator("span[title]")
        assert tokens.count() == len(best["reply"]["lengths"])
        assert "".join(tokens.all_text_contents()) == best["reply"]["text"]
        page.click("button[type=reset]")
        page.select_option("#failure", "user refused by a guard")
        assert "2 messages of the user refused by guards" in page.locator("#detail").inner_text()
        assert page.locator("#detail .refused").count() == 0
        page.check("#guards")
        assert page.locator("#detail .refused").all_inner_texts() == [
            'Refused (leak):\n{"message": "all that I want"}',
            "Refused (stop):\n[[SATISFIED]]",
        ]


@browses
def test_keys_move_search_and_change_the_theme(browser, page_file):
    with opened(browser, page_file, color_scheme="dark") as page:

        def back() -> str:
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        dark = back()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert page.locator("#list button").nth(1).get_attribute("aria-current") == "true"
        page.keyboard.press("/")
        page.keyboard.type("jk d")  # in a field they are letters
        assert page.input_value("#search") == "jk d" and back() == dark
        page.keyboard.press("Escape")
        page.keyboard.press("d")
        assert back() == "rgb(255, 255, 255)" != dark
        page.keyboard.press("d")
        assert back() == dark
        page.keyboard.press("?")
        assert page.locator("#help").is_visible() and "next entry" in page.locator("#help").inner_text()
        page.keyboard.press("Escape")
        assert not page.locator("#help").is_visible()


@browses
def test_print_has_the_open_conversation_with_all_branches_and_no_buttons(browser, page_file):
    with opened(browser, page_file, color_scheme="dark") as page:
        page.select_option("#phase", "train")
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        branches = page.locator("#detail details")
        assert branches.count() > 3 and page.locator("#detail details:not([open])").count() == 0
        assert not page.locator("#filters").is_visible() and not page.locator("#list").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("#detail details.branch[open]").count() == 0
        page.emulate_media(media="screen")


@browses
def test_a_hostile_message_is_text(browser, tmp_path):
    folder = RunFolder(tmp_path / "hostile", goals=1, steps=1, say=lambda who, draws: HOSTILE).folder
    for name in ("goals.jsonl", "transcripts.jsonl"):  # goals and names of policies may come from a stranger too
        text = (folder / name).read_text(encoding="utf-8")
        for word in ('"the shared kiln"', '"policy": "trained"', '"coverage"'):
            text = text.replace(word, word[:-1] + json.dumps("</script><img src=x onerror=alert(1)>")[1:])
        (folder / name).write_text(text, encoding="utf-8")
    page_file = write_report([folder])
    assert page_file.read_text(encoding="utf-8").count("</script>") == 2
    with opened(browser, page_file) as page:  # any request, error or dialog fails
        page.check("#tokens")
        for phase in ("test", "validation", "train"):
            page.select_option("#phase", phase)
            page.evaluate("document.querySelectorAll('details').forEach((branch) => { branch.open = true; })")
            assert page.title() == "hostile"
            assert page.locator("img").count() == 0 and page.locator("script").count() == 2
            said = page.locator("#detail .message.assistant .text").first.text_content()
            assert said == HOSTILE


@browses
def test_even_html_that_got_into_the_page_would_run_nothing(browser, page_file):
    page = browser.new_page(offline=True)
    page.goto(page_file.as_uri())
    page.evaluate(
        "document.addEventListener('securitypolicyviolation', (event) => { window.refused = event.blockedURI; })"
    )
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b id=x onclick=\"document.title=1\">x</b>')")
    page.evaluate("document.getElementById('x').click()")
    page.wait_for_timeout(100)
    assert page.title() == "first" and page.evaluate("window.refused") == "inline"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=file:///etc/hostname>')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.refused").startswith("file")
    page.close()


@browses
def test_500_conversations_open_in_two_seconds_and_are_small(browser, tmp_path):
    def long(who, draws):
        return " ".join(spoken(who, draws) for _ in range(3))

    run = RunFolder(tmp_path / "large", goals=12, steps=5, candidates=4, samples=2, say=long)
    page_file = write_report([run.folder])
    assert page_file.stat().st_size < 15e6
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=2) >= 2:  # the machine may be at work on something else
        with opened(browser, page_file) as page:
            assert int(re.search(r"(\d+) conversations", page.locator("#count").inner_text())[1]) >= 500
            times = page.evaluate("(([t]) => [t.loadEventEnd, t.duration])(performance.getEntriesByType('navigation'))")
            seconds.append(max(times) / 1000)
    assert min(seconds) < 2, seconds
