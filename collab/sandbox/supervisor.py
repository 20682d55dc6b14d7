"""Runs one untrusted program locked in, watches it, and reports how it ended. `collab.sandbox.run` starts this script.

It is a process of its own because namespaces, limits and user ids belong to a process, and the process that trains has
threads and a GPU. It never executes a line of the program. It holds what the program must not have: the tests until
they are due, the token of the report, and the view from outside.

    collab ── supervisor (this file) ── worker.py: the program and its tests; pid 1 of its own pid namespace
              stdin: one line of JSON, then nothing; its end means that collab is gone, and ends the program
              stdout: one line of JSON, the verdict

It is started with `python -I -S`, and imports nothing but the standard library and `lockdown.py`.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time

if not __package__:  # run by path: -I and -S leave the folder of the package out of the import path
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collab.sandbox.lockdown import (
    CLONE_NEWPID,
    PR_SET_CHILD_SUBREAPER,
    attempt,
    become_worker,
    call,
    enter_user_namespace,
    of_all_processes,
)

POLL_SECONDS = 0.03  # the least time between two looks at the memory of all processes
READY_SECONDS = 60.0  # for an interpreter to start, on a busy machine
READ_BYTES = 1 << 16  # read at a time; also the longest report
FREE_IDS = range(60578, 61184)  # user ids that distributions leave unused (systemd's table of ids)
NAMESPACES = ("user namespace", "pid namespace", "mount namespace", "network namespace")
LIMITS = ("cpu time", "memory", "process count", "file size", "output", "wall clock")
ALWAYS = (*LIMITS, "unprivileged user", "cleared environment", "temporary folder")  # else no program is run


class Refused(Exception):
    """The program was not run; the message says why."""


def main() -> None:
    request = json.loads(sys.stdin.readline())
    with open(os.path.join(os.path.dirname(__file__), "worker.py")) as file:
        request["worker"] = file.read()
    try:
        verdict = supervise(request)
    except Refused as refusal:
        verdict = {"refused": str(refusal)}
    with contextlib.suppress(OSError):
        os.rmdir(request["folder"])  # empty with a mount namespace; if collab is gone, nobody else removes it
    print(json.dumps(verdict), flush=True)


def supervise(request: dict) -> dict:
    """Run one program with its tests; returns the fields of `collab.sandbox.run.Verdict`.

    Raises:
        Refused: The program was not run.
    """
    request["uid"] = FREE_IDS[os.getpid() % len(FREE_IDS)]  # its own user, so that runs cannot touch each other
    granted: list[str] = []
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.geteuid() != 0:
        attempt(granted, "user namespace", enter_user_namespace)
    attempt(granted, "pid namespace", call, "unshare", CLONE_NEWPID)
    ours, theirs = socket.socketpair()
    read_output, write_output = os.pipe()
    read_status, write_status = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become_worker(request, granted, theirs.fileno(), write_output, write_status)
        except BaseException as error:
            os.write(write_status, b"\n" + f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)
    theirs.close()
    os.close(write_output)
    os.close(write_status)
    try:
        with open(read_status, "rb") as stream:
            status, _, error_text = stream.read().partition(b"\n")
        if error_text or not status:
            raise Refused(f"the sandbox cannot be set up: {error_text.decode()}")
        enforced = [*ALWAYS, *json.loads(status)]
        missing = [name for name in NAMESPACES if name not in enforced]
        if missing and request["strict"]:
            raise Refused(f"it cannot be given a {' or a '.join(missing)} of its own here")
        verdict = watch(Worker(pid, ours, read_output, request), request)
    finally:
        status_code, cpu = end(pid, sweep="pid namespace" not in granted)
    if not verdict["outcome"]:
        how = f"signal {os.WTERMSIG(status_code)}" if os.WIFSIGNALED(status_code) else "an exit of its own"
        verdict |= {"outcome": "ended early", "detail": f"ended by {how} before the tests were over"}
        # The kernel ends it by the number of clock ticks in which it ran, which may exceed the time on a busy machine.
        if status_code == signal.SIGKILL and cpu >= 0.5 * request["limits"]["cpu_seconds"]:
            seconds = request["limits"]["cpu_seconds"]
            verdict |= {"outcome": "cpu time", "detail": f"used up its {seconds} seconds of CPU time"}
    return {**verdict, "enforced": enforced, "missing": missing}


class Worker:
    """The supervisor's ends of the worker's socket and output.

    Args:
        pid: Of the worker.
        control: The socket; takes the program and its tests, and brings the report.
        output: File descriptor for reading what the program prints.
        request: As `collab.sandbox.run` sends it.

    Attributes:
        token: The worker's report must begin with it.
        report: What came through the socket: a byte that says "started", then the report.
        printed: What the program has printed.
        open_ends: The file descriptors that the worker has not closed.
    """

    def __init__(self, pid: int, control: socket.socket, output: int, request: dict) -> None:
        self.pid, self.control, self.output = pid, control, output
        self.token = os.urandom(16).hex().encode()
        texts = [request["entry_point"], " ".join(request["used"]), request["program"], request["tests"]]
        parts = [*(text.encode("utf-8", "surrogatepass") for text in texts), self.token]
        self._unsent = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        self.report, self.printed = b"", b""
        self.open_ends = {control.fileno(), output}
        control.setblocking(False)
        self._poller = select.poll()
        for fd in (0, *self.open_ends):
            self._poller.register(fd, select.POLLIN)

    def start(self) -> None:
        """Send the program and its tests, as fast as the worker reads them."""
        self._poller.modify(self.control.fileno(), select.POLLIN | select.POLLOUT)

    def has_exited(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def exchange(self, seconds: float) -> None:
        """Wait at most `seconds` for the worker; then send and read all that needs no further waiting.

        Raises:
            Refused: Nobody waits for the verdict any more.
        """
        for fd, event in self._poller.poll(seconds * 1000):
            if fd == 0:
                raise Refused("nobody waits for the verdict any more")
            try:
                if event & select.POLLOUT:
                    self._unsent = self._unsent[os.write(fd, self._unsent) :]
                    if not self._unsent:
                        self._poller.modify(fd, select.POLLIN)
                if not event & ~select.POLLOUT:
                    continue
                data = os.read(fd, READ_BYTES)
            except OSError:  # the worker has ended without reading everything
                data = b""
            if fd == self.output:
                self.printed += data
            else:
                self.report += data
            if not data:
                self._poller.unregister(fd)
                self.open_ends.discard(fd)


def watch(worker: Worker, request: dict) -> dict:
    """Hold the worker to the limits until it reports or has to end.

    Returns:
        "outcome" ("" if only the worker's exit status can tell it), "detail", "output" and "seconds".

    Raises:
        Refused: The interpreter does not start, or nobody waits for the verdict any more.
    """
    limits = request["limits"]
    ready = False
    started = now = time.monotonic()
    deadline, next_look = started + READY_SECONDS, started + POLL_SECONDS
    verdict = {"outcome": "", "detail": ""}
    while worker.open_ends and not verdict["outcome"]:
        # Ask before reading the pipes, so that all that it wrote is read; its children may keep the pipes open.
        exited = worker.has_exited()
        worker.exchange(0.0 if exited else max(0.0, min(next_look, deadline) - now))
        now = time.monotonic()
        if worker.report and not ready:
            ready, started, deadline = True, now, now + limits["seconds"]
            worker.start()
        if complete := read_report(worker.report[1:], worker.token):
            verdict = complete
        elif len(worker.printed) > limits["output_bytes"]:
            verdict = {"outcome": "output", "detail": f"printed more than {limits['output_bytes']} bytes"}
        elif exited or len(worker.report) > READ_BYTES:  # no report is that long
            break
        elif now >= deadline:
            verdict = {"outcome": "wall time", "detail": f"not over after {limits['seconds']} seconds"}
        elif now >= next_look:
            used = memory_in_use(limits["memory_bytes"])
            if used > limits["memory_bytes"]:
                verdict = {"outcome": "memory", "detail": f"used {used} bytes, of {limits['memory_bytes']}"}
            looked, now = now, time.monotonic()
            next_look = now + max(POLL_SECONDS, 20 * (now - looked))  # looking takes at most a twentieth of the time
    if not ready:
        why = worker.printed.decode(errors="replace").strip() or "it does not start"
        raise Refused(f"{request['python']} cannot be run in the sandbox: {why}")
    text = worker.printed[: limits["output_bytes"]].decode(errors="replace")
    return {**verdict, "output": text, "seconds": time.monotonic() - started}


def read_report(report: bytes, token: bytes) -> dict[str, str]:
    """The worker's own verdict; empty for a report without the token, and until all of the report has come."""
    size, body = report[:8], report[8:]
    if len(size) < 8 or len(body) < int.from_bytes(size, "big"):
        return {}
    given, _, rest = body.partition(b"\n")
    outcome, _, detail = rest.partition(b"\n")
    if given != token:
        return {}
    return {"outcome": "passed" if outcome == b"passed" else "failed", "detail": detail.decode(errors="replace")}


def end(pid: int, sweep: bool) -> tuple[int, float]:
    """Kill the worker and all that it left behind. Returns its wait status and CPU seconds.

    Args:
        pid: The worker.
        sweep: There is no pid namespace, in which the kernel would end all processes with the first one. Orphans have
            become children of this process, their subreaper; kill them until none is left.
    """
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    while sweep and (left := descendants()):
        for other in left:
            try:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass  # it has ended, or is still the child of another process
    return status, usage.ru_utime + usage.ru_stime


def memory_in_use(bound: int) -> int:
    """Bytes of memory that the processes below this one use together; pages that they share count once.

    Counting shared pages once takes a walk over page tables, so it is done only if the plain sum exceeds `bound`.
    """
    resident = descendants()
    if sum(resident.values()) <= bound:
        return sum(resident.values())
    total = 0
    for pid, size in resident.items():
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += 1024 * int(file.read().partition("\nPss:")[2].split(maxsplit=1)[0])
        except (OSError, IndexError):
            total += size  # it has ended, or made itself unreadable
    return total


def descendants() -> dict[int, int]:
    """Process id -> bytes of memory in use, for every process below this one."""
    parents, pages = {}, {}
    for pid, text in of_all_processes("stat"):
        fields = text.rpartition(b")")[2].split()  # the process name before it may hold anything
        parents[pid], pages[pid] = int(fields[1]), int(fields[21])
    family: set[int] = {os.getpid()}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in family} - family
        family |= below
        grown = bool(below)
    return {pid: pages[pid] * resource.getpagesize() for pid in family - {os.getpid()}}


if __name__ == "__main__":
    main()
