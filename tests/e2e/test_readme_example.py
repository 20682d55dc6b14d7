"""The last Python example of docs/python.md runs as it stands, and with the real model shows what the page says."""

import re
from pathlib import Path

import pytest
from commands import finished
from marks import slow

from collab.lm.smollm2 import cached_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("model", ["tiny_model", slow("smollm2")])
def test_the_example_runs_and_the_question_comes_out_ahead(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    cache = tmp_path / "cache"
    if model == "tiny_model":  # where the small model that ships would be
        cache.mkdir()
        (cache / cached_folder().name).symlink_to(folder)
    *_, example = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.M | re.S
    )
    program = tmp_path / "example.py"
    program.write_text(example, encoding="utf-8")
    done = finished(str(program), cwd=tmp_path, env={"COLLAB_CACHE": str(cache)} if model == "tiny_model" else {})
    assert done.returncode == 0, done.stderr
    found = {text: float(mr) for mr, text in re.findall(r"^MR (\S+)  (.*)$", done.stdout, re.MULTILINE)}
    assert len(found) == 2
    if model == "tiny_model":  # what it says is of no use
        return
    assert found["What should the sign say to visitors?"] > found["Welcome to the bench! Enjoy the lovely view."]
