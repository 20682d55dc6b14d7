"""The notebook runs from its first cell to its last, with the real model, and prints and draws what it promises."""

import json
import re
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "multiturn_reward.ipynb"


def test_the_notebook_runs(smollm2, capsys, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            # One forward sample is enough to see that it runs; two give a spread.
            source = "".join(cell["source"]).replace("num_samples = 3", "num_samples = 2")
            exec(compile(source, str(NOTEBOOK), "exec"), space)
    printed = capsys.readouterr().out
    found = re.findall(r"^MR (\S+), spread (\S+): (.*)$", printed, re.MULTILINE)
    assert [text for _, _, text in found] == space["candidates"]
    assert printed.count("-> R* ") == 2 and "bleu: " in printed
    (figure,) = drawn
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == space["candidates"]
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2]
