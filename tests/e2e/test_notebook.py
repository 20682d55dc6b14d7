"""The notebooks run from the first cell to the last and print what they promise; what is committed is small."""

import json
import re
import sys
from pathlib import Path

import pytest
from marks import slow

from collab.lm.smollm2 import cached_folder

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = FOLDER / "multiturn_reward.ipynb"
PRINTS = {  # lines of each notebook
    "multiturn_reward": [r"MR \S+, spread \S+: What should the sign say to visitors\?", r"-> R\* \S+"],
    "first_training": [r"step 8: loss \d", r" +trained: R\* \S+ \[.*\], n = 2", r"--- trained", r"user: \w", r"---"],
    "own_task": [
        r"1\.00  One cake",
        r"0\.00  One nice",
        r" +trained: reward \S+ ordered \S+",
        r"user: .*I want to order",
    ],
}
WITH_OUTPUTS = ("multiturn_reward", "first_training", "own_task")
LARGEST = 50_000  # bytes of a picture, as text in the file


@pytest.mark.parametrize("model", ["tiny_model", slow("smollm2")])
def test_the_notebook_runs(model, request, tmp_path, capsys, monkeypatch):
    """In this process, which has imported torch already."""
    folder = request.getfixturevalue(model)
    if model == "tiny_model":
        place(folder, tmp_path, monkeypatch)
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


def place(model, folder, monkeypatch):
    """Put a tiny model where the small model that ships would be."""
    monkeypatch.setenv("COLLAB_CACHE", str(folder))
    cached_folder().symlink_to(model)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [slow(name) for name in PRINTS])
def test_a_notebook_runs_in_a_kernel(name, tiny_model, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    place(tiny_model, tmp_path, monkeypatch)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()  # raises where a cell does
    for line in PRINTS[name]:
        assert re.search(rf"^{line}", printed_by(notebook), re.MULTILINE), line


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_the_committed_outputs_are_whole_and_small(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # run once, in order
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [value for output in outputs for kind, value in output.get("data", {}).items() if "image" in kind]
    assert all(len(picture) < LARGEST for picture in pictures)
    for line in PRINTS[name]:
        assert re.search(rf"^{line}", printed_by(notebook), re.MULTILINE), line
    assert str(Path.home()) not in text and sys.prefix not in text


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(PRINTS)


def printed_by(notebook):
    """What the cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "\n".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
