"""The notebook runs from its first cell to its last, and prints and draws what it promises."""

import json
import re
from pathlib import Path

import pytest
from marks import slow

from collab.lm.smollm2 import cached_folder

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "multiturn_reward.ipynb"


@pytest.mark.parametrize("model", ["tiny_model", slow("smollm2")])
def test_the_notebook_runs(model, request, tmp_path, capsys, monkeypatch):
    folder = request.getfixturevalue(model)
    if model == "tiny_model":  # where the small model that ships would be
        monkeypatch.setenv("COLLAB_CACHE", str(tmp_path))
        cached_folder().symlink_to(folder)
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
