"""Runs programs in the sandbox as another user would: `python locked_in.py USER < programs.json > verdicts.json`.

USER is `me`; or, from root, `plain` (an ordinary user), `bare` (the same where the kernel gives no namespaces) or
`bare_root` (root that may not make any, as in most containers).
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import collab
from collab.sandbox import lockdown
from collab.sandbox.run import Limits, run_program
from collab.sandbox.supervisor import descendants
from collab.util.errors import BadInput

SMALL = Limits(
    seconds=30,
    cpu_seconds=10,
    memory_bytes=256 << 20,
    processes=16,
    file_bytes=1 << 20,
    disk_bytes=4 << 20,
    output_bytes=1 << 16,
)
SECRET, SECRET_VALUE = "COLLAB_TEST_SECRET", "hush-hush"  # in the environment of the process that trains
PLAIN_ID = 60500
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21


def run_as(user: str, programs: dict[str, dict[str, Any]], folder: str) -> dict[str, dict[str, Any]]:
    """Run all programs, as many at a time as `run_program` lets.

    Args:
        user: Whose process calls `run_program`.
        programs: Name -> arguments of `run_program`; "limits" has what differs from SMALL.
        folder: For temporary files; anybody may write there.

    Returns:
        Name -> the verdict as a dict; {"refused": message} for BadInput. "left" -> processes that are still there.
    """
    done = subprocess.run(
        [sys.executable, __file__, user],
        input=json.dumps(programs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(collab.__file__).parents[1]), "TMPDIR": folder, SECRET: SECRET_VALUE},
    )
    return json.loads(done.stdout)


def kernel_gives_namespaces(user: str) -> bool:
    """Whether `user` can make the namespaces that the sandbox wants, asked of another program than ours."""
    if not shutil.which("unshare"):
        return False
    who: dict[str, Any] = dict(user=PLAIN_ID, group=PLAIN_ID, extra_groups=[]) if user == "plain" else {}
    command = "unshare --user --map-root-user --mount --net --pid --fork --mount-proc true".split()
    return subprocess.run(command, cwd="/", capture_output=True, **who).returncode == 0


def become(user: str) -> None:
    """Give up what `user` does not have, for good, and start again as `me`."""
    if user == "bare_root":
        lockdown.call("prctl", PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)  # holds from the next program on
    _open_to_all([sys.prefix, sys.base_prefix, str(Path(collab.__file__).parents[1])])
    if user in ("plain", "bare"):
        os.setgroups([])
        os.setresgid(*[PLAIN_ID] * 3)
        os.setresuid(*[PLAIN_ID] * 3)
        lockdown.call("prctl", lockdown.PR_SET_DUMPABLE, 1, 0, 0, 0)
    if user == "bare":
        lockdown.enter_user_namespace()
    os.execv(sys.executable, [sys.executable, __file__, "me"])


def _open_to_all(needed: list[str]) -> None:
    """In a mount namespace of our own, let others reach these folders too, which may lie below root's home."""
    closed = {
        str(folder)
        for path in needed
        for folder in reversed(Path(path).resolve().parents)
        if not folder.stat().st_mode & 0o001
    }
    if not closed:
        return
    lockdown.call("unshare", lockdown.CLONE_NEWNS)
    lockdown.call("mount", "none", "/", None, lockdown.MS_REC | lockdown.MS_PRIVATE, None)
    bind = lockdown.MS_BIND | lockdown.MS_REC
    with tempfile.TemporaryDirectory() as stage:
        lockdown.call("mount", "tmpfs", stage, "tmpfs", 0, "mode=755")
        for number, path in enumerate(needed):
            os.mkdir(f"{stage}/{number}")
            lockdown.call("mount", path, f"{stage}/{number}", None, bind, None)
        for folder in sorted(closed):
            if os.path.isdir(folder):
                lockdown.call("mount", "tmpfs", folder, "tmpfs", 0, "mode=755")
        for number, path in enumerate(needed):
            if not os.path.exists(path):
                os.makedirs(path)
                lockdown.call("mount", f"{stage}/{number}", path, None, bind, None)
        lockdown.call("umount2", stage, lockdown.MNT_DETACH)


async def _verdict(arguments: dict[str, Any]) -> dict[str, Any]:
    limits = Limits(**{**asdict(SMALL), **arguments.pop("limits", {})})
    try:
        verdict = await run_program(**arguments, limits=limits)
    except BadInput as refusal:
        return {"refused": str(refusal)}
    return asdict(verdict)


async def _verdicts(programs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    lockdown.call("prctl", lockdown.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what loses its parent becomes our child
    verdicts = dict(zip(programs, await asyncio.gather(*map(_verdict, programs.values())), strict=True))
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                break
        except ChildProcessError:
            break
    return {**verdicts, "left": list(descendants())}


if __name__ == "__main__":
    if sys.argv[1] != "me":
        become(sys.argv[1])
    json.dump(asyncio.run(_verdicts(json.load(sys.stdin))), sys.stdout)
