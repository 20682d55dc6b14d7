"""How often the candidates of a group are ranked rightly, for the forward samples spent.

    python benchmarks/sampling.py --groups 8 --policy outputs/doc_edit/RUN/policy      # play, then tell
    python benchmarks/sampling.py --from outputs/sampling.jsonl --write                # tell again, and write docs/

Contexts of `experiment=doc_edit` are drawn on-policy from validation goals, at every turn but the last: what follows
the last reply is certain. Each candidate gets a pool of scored futures, whose sample i meets the same user randomness
as sample i of every other candidate. All methods are replayed on the pools, over and over: the columns of a pool are
shuffled, the first ones are the reference, and the methods get the rest.

    independent        two candidates of a pair take different columns: nothing is shared
    paired             all candidates take the same columns
    paired + adaptive  half as a pilot in the same columns, then the next columns, as `sampler.adaptive=true` does
    adaptive, told     the same, but the second stage is told the true gaps and variances: what allocation could win

A pair counts as right where the sign of its difference is that of the reference; 1/2 where a method sees a tie. Pairs
that tie in the reference are left out; "clear" pairs are those whose gap in the reference is beyond two of its standard
errors. Fields of the experiment follow as in train.py: `sampler.window=2 task.max_new_tokens=16`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collab.simulation.allocation import LEAST_SAMPLES, allocate, mean_of_stages, pilot_samples, spend

SIZES = (1, 2, 3, 4, 6, 8)  # forward samples per candidate, on average
DOCS = Path(__file__).parent.parent / "docs"
# Okabe and Ito's palette; markers differ for grey prints.
LINES = {
    "independent": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "paired": {"color": "#0072B2", "marker": "s", "linestyle": "-"},
    "paired + adaptive": {"color": "#D55E00", "marker": "^", "linestyle": "-"},
    "adaptive, told": {"color": "#D55E00", "marker": "v", "linestyle": ":"},
}
DIFFERENCES = (("paired", "independent"), ("paired + adaptive", "paired"), ("adaptive, told", "paired"))
Cell = tuple[float, float, float]  # a value and its 95 % interval


# --- the pools -------------------------------------------------------------------------------------------------------


def play(policy: str, groups: int, samples: int, seed: int, overrides: Sequence[str], output: Path) -> None:
    """Write one line of JSON for each group, as soon as it is played: its policy, goal, turn and `[candidate, sample]`
    scores."""
    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress
    from collab.callbacks.rollout import context_position
    from collab.config.schema import check
    from collab.conversation import Goal, Key
    from collab.datamodules.goals import load_splits
    from collab.lm.loading import load_model, load_tokenizer, resolve_device, resolve_dtype
    from collab.simulation.rollout import draw_context, multiturn_reward, sample_candidates

    model = [] if policy == "base" else [f"model.path={policy}"]
    config = load_config("train", ["experiment=doc_edit", f"seed={seed}", *model, *overrides])
    check(config)
    build.start(config)
    goals = load_splits(config.task).val
    turns = range(1, config.task.max_turns + 1)
    numbers = [n for n in range(2 * groups + len(turns)) if context_position(seed, n, turns) < len(turns)][:groups]
    device = resolve_device(config.trainer.accelerator)
    lm = load_model(config.model, resolve_dtype(config.precision, device), device, adapter=False)
    with Progress() as progress, build.endpoints(config, progress) as endpoints, output.open("a") as file:
        simulation = build.simulation(config, endpoints, progress.advance)
        players = simulation.players(simulation.make_engine(lm, load_tokenizer(config.model)))
        progress.phase(policy, groups * config.sampler.group_size * samples)

        async def group(number: int, goal: Goal) -> None:
            key = Key(seed, split=f"sampling/{number}", goal=goal.id)
            position = context_position(seed, number, turns)
            context = await draw_context(
                players, goal, config.task.system_prompt, position, key.at(split=f"c/{number}")
            )
            candidates = await multiturn_reward(
                context,
                await sample_candidates(players, context, config.sampler.group_size, key),
                players=players,
                reward=simulation.reward,
                window=config.sampler.window,
                num_samples=samples,
                key=key,
            )
            scores = [[score.reward for score in candidate.scores] for candidate in candidates]
            record = {"policy": policy, "goal": goal.id, "turn": context.position, "scores": scores}
            file.write(json.dumps(record) + "\n")
            file.flush()

        async def everyone() -> None:
            await asyncio.gather(*(group(number, goals[i % len(goals)]) for i, number in enumerate(numbers)))

        asyncio.run(everyone())


# --- the methods -----------------------------------------------------------------------------------------------------


def adaptive(scores: np.ndarray, size: int, rule: Callable[[list[list[float]], int], list[int]]) -> np.ndarray:
    """MR of each candidate as `multiturn_reward` has it, its samples taken from `[candidate, sample]` in order."""
    pilot = pilot_samples(size)
    more = rule(scores[:, :pilot].tolist(), size)
    weights = (pilot / size, 1 - pilot / size)
    stages = (
        (row[:pilot].tolist(), row[pilot : pilot + count].tolist()) for row, count in zip(scores, more, strict=True)
    )
    return np.array([mean_of_stages(stage, weights) for stage in stages])


def replay(pool: np.ndarray, reference: int, replays: int, seed: int) -> dict[str, dict[int, np.ndarray]]:
    """Right pairs and pairs, all and clear ones, summed over the replays of one group.

    Args:
        pool: `[candidate, sample]` scores.
        reference: Samples per candidate that the methods are measured against.
        replays: Shuffles of the columns.
        seed: Of the shuffles.

    Returns:
        Method -> samples per candidate -> `[right, pairs, right clear, clear pairs]`.
    """
    draws = np.random.default_rng(seed)
    one, other = np.triu_indices(len(pool), 1)
    true_gaps = np.abs(pool.mean(1)[:, None] - pool.mean(1)[None, :]).tolist()
    true_variances = pool.var(1, ddof=1).tolist()
    sizes = [size for size in SIZES if 2 * size <= pool.shape[1] - reference]
    found = {name: {n: np.zeros(4) for n in sizes if n >= LEAST_SAMPLES or "adaptive" not in name} for name in LINES}
    for _ in range(replays):
        shuffled = pool[:, draws.permutation(pool.shape[1])]
        true, rest = shuffled[one, :reference] - shuffled[other, :reference], shuffled[:, reference:]
        truth, error = true.mean(1), true.std(1, ddof=1) / reference**0.5
        clear = np.abs(truth) > 2 * error
        for n in sizes:
            means = {
                "independent": (rest[one, :n].mean(1), rest[other, n : 2 * n].mean(1)),
                "paired": (rest[one, :n].mean(1), rest[other, :n].mean(1)),
            }
            if n >= LEAST_SAMPLES:
                ours = adaptive(rest, n, allocate)
                told = adaptive(rest, n, lambda pilots, size: spend(true_gaps, true_variances, size))
                means |= {"paired + adaptive": (ours[one], ours[other]), "adaptive, told": (told[one], told[other])}
            for name, (left, right) in means.items():
                gap = left - right
                hit = np.where(gap == 0, 0.5, np.sign(gap) == np.sign(truth))
                kept = truth != 0
                found[name][n] += (hit[kept].sum(), kept.sum(), hit[kept & clear].sum(), (kept & clear).sum())
    return found


def correlation(pools: Sequence[np.ndarray]) -> float:
    """How much of the variance of a difference pairing takes away: covariance of two candidates over their variance."""
    shared = own = 0.0
    for pool in pools:
        covariance = np.cov(pool)
        size = len(pool)
        own += np.trace(covariance) / size
        shared += (covariance.sum() - np.trace(covariance)) / (size * (size - 1))
    return shared / own if own else float("nan")


# --- what is told ----------------------------------------------------------------------------------------------------


def interval(statistic: Callable[[np.ndarray], float], groups: int, seed: int) -> Cell:
    """The statistic of all groups, and its 95 % bootstrap interval over groups."""
    draws = np.random.default_rng(seed)
    values = [statistic(draws.integers(groups, size=groups)) for _ in range(1000)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return statistic(np.arange(groups)), float(low), float(high)


def tell(records: Sequence[dict[str, Any]], reference: int, replays: int, seed: int, figure: Path | None) -> None:
    """Print a table for each policy, and draw the figure."""
    policies: dict[str, list[np.ndarray]] = {}
    for record in records:
        if all(value is not None for row in record["scores"] for value in row):
            name = "base" if record["policy"] == "base" else "trained"
            policies.setdefault(name, []).append(np.array(record["scores"], dtype=float))
    curves: dict[str, dict[str, dict[int, Cell]]] = {}
    for policy, pools in policies.items():
        counted = [replay(pool, reference, replays, seed + i) for i, pool in enumerate(pools)]

        def share(right: int, n: int, name: str, counted: Any = counted, minus: str = "") -> Cell:
            """Share of right pairs (0: all, 2: clear ones), or by how much it is above that of another method."""
            ours, theirs = (np.array([count[method][n] for count in counted]) for method in (name, minus or name))

            def statistic(chosen: np.ndarray) -> float:
                one, other = ours[chosen].sum(0), theirs[chosen].sum(0)
                if not one[right + 1]:
                    return float("nan")
                return float((one[right] - (other[right] if minus else 0)) / one[right + 1])

            return interval(statistic, len(counted), seed)

        pairs = np.array([count["paired"][1] for count in counted]).sum(0)

        def shared(chosen: np.ndarray, pools: list[np.ndarray] = pools) -> float:
            return correlation([pools[i] for i in chosen])

        rho = interval(shared, len(pools), seed)
        print(f"\n{policy}: {len(pools)} groups of {len(pools[0])}, {pools[0].shape[1]} futures each; ", end="")
        print(f"{pairs[3] / pairs[1]:.0%} of pairs clear; ", end="")
        print(f"correlation within a column {rho[0]:.3f} ({rho[1]:.3f} to {rho[2]:.3f})\n")
        sizes = list(counted[0]["paired"])
        print("| pairs | method | " + " | ".join(map(str, sizes)) + " |")
        print("|---|---|" + "---:|" * len(sizes))
        curves[policy] = {}
        for what, right in (("all", 0), ("clear", 2)):
            for name, minus in (*((name, "") for name in LINES), *DIFFERENCES):
                cells = {n: share(right, n, name, minus=minus) for n in counted[0][name]}
                if right == 0 and not minus:
                    curves[policy][name] = cells
                told = (_cell(cells[n], signed=bool(minus)) if n in cells else "-" for n in sizes)
                print(f"| {what} | {name}{f' - {minus}' if minus else ''} | " + " | ".join(told) + " |")
        if 3 in sizes:
            print("\nSamples per candidate for the accuracy of 3 independent ones, all pairs:")
            for name, cells in curves[policy].items():
                print(f"  {name}: {needed(cells, curves[policy]['independent'][3][0])}")
    if figure and curves:
        draw(curves, figure)


def _cell(cell: Cell, signed: bool) -> str:
    sign = "+" if signed else ""
    return "{0:{s}.3f} ({1:{s}.3f} to {2:{s}.3f})".format(*cell, s=sign)


def needed(cells: dict[int, Cell], wanted: float) -> str:
    """Where a curve, straight between its points, first comes up to `wanted`."""
    points = [(n, cell[0]) for n, cell in cells.items()]
    if points and points[0][1] >= wanted:
        return f"at most {points[0][0]}"
    for (n, low), (m, high) in zip(points, points[1:], strict=False):
        if high >= wanted:
            return f"{n + (m - n) * (wanted - low) / (high - low):.1f}"
    return "more than there are"


def draw(curves: dict[str, dict[str, dict[int, Cell]]], output: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for panel, (policy, methods) in zip(panels, curves.items(), strict=True):
        for name, cells in methods.items():
            if cells:
                value, low, high = np.array(list(cells.values())).T
                panel.plot(list(cells), value, label=name, markersize=4, linewidth=1.2, **LINES[name])
                if name == "independent":
                    panel.fill_between(list(cells), low, high, color="0.9", zorder=0, label="its 95 % interval")
        panel.set_title(f"{policy} policy", loc="left", fontsize=10)
        panel.set_xlabel("forward samples per candidate", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel("pairs ranked as by the reference", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=len(labels))
    figure.savefig(output, dpi=150)
    print(f"\n{output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="fields of experiment=doc_edit, as train.py takes them")
    parser.add_argument("--policy", nargs="+", default=["base"], help="base, or folders that a run exported")
    parser.add_argument("--groups", type=int, default=8, help="contexts of each policy")
    parser.add_argument("--reference", type=int, default=32, help="samples per candidate behind the reference")
    parser.add_argument(
        "--pool", type=int, default=16, help="further ones for the methods; sizes up to half of it are told"
    )
    parser.add_argument("--replays", type=int, default=200, help="shuffles of each pool")
    parser.add_argument("--seed", type=int, default=1, help="of contexts, futures, shuffles and intervals")
    parser.add_argument("--output", type=Path, default=Path("outputs/sampling.jsonl"), help="the pools, appended to")
    parser.add_argument("--from", dest="source", type=Path, nargs="+", help="files of pools: nothing is played")
    parser.add_argument("--write", action="store_true", help="draw docs/sampling.png")
    args = parser.parse_args()
    if args.reference < 2 or args.pool < 2:
        parser.error("--reference and --pool must be at least 2: a scatter takes two samples, and so do two columns.")
    if not args.source:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        for policy in args.policy:
            play(policy, args.groups, args.reference + args.pool, args.seed, args.overrides, args.output)
    records = [json.loads(line) for path in args.source or [args.output] for line in path.read_text().splitlines()]
    tell(records, args.reference, args.replays, args.seed, DOCS / "sampling.png" if args.write else None)


if __name__ == "__main__":
    main()
