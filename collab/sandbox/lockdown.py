"""Locks a process in and turns it into the worker; `supervisor.py` calls `become_worker` in the child that it forks.

It uses little of the standard library, and nothing else: pathlib and typing would double the time that the supervisor
takes to start.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator

# From <linux/sched.h>, <sys/mount.h>, <linux/mount.h> and <sys/prctl.h>; Python has names for some from 3.12 on.
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # the number is the same on every architecture
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

INSIDE_ID = 1000  # user and group id that the program sees in a user namespace
BOX = "/box"  # the program's folder in a mount namespace
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/fonts", "/etc/mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: str | int | bytes | None) -> None:
    """Call a libc function that returns 0, or raise `OSError` with its errno; text becomes bytes, numbers long."""
    given = [a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    if getattr(_libc, name)(*given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def attempt(granted: list[str], name: str, step: Callable[..., None], *args: object) -> None:
    """Take a step that the kernel may refuse; if it does not, `name` is added to `granted`."""
    try:
        step(*args)
    except OSError:
        return
    granted.append(name)


def become_worker(request: dict, granted: list[str], control: int, output: int, status: int) -> None:
    """Lock this process in and replace it by the worker; does not return.

    Args:
        request: As `collab.sandbox.run` sends it, with `uid`, the user id that root gives the program, and `worker`,
            the source of the worker.
        granted: Names of the namespaces that the kernel has granted so far.
        control: File descriptor of the socket to the worker.
        output: File descriptor for what the program prints.
        status: File descriptor that gets the names of all namespaces that were granted.
    """
    limits, folder, root = request["limits"], request["folder"], os.geteuid() == 0
    os.setsid()  # a signal to the program's process group must not reach the supervisor
    for fd, source in ((0, os.open("/dev/null", os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, fd)
    os.set_inheritable(control, True)
    if "pid namespace" in granted:  # the new /proc must show a new pid namespace
        attempt(granted, "mount namespace", enter_mount_namespace, folder, request["packages"], limits["disk_bytes"])
    if "mount namespace" in granted:
        folder = BOX
    elif root:
        os.chown(folder, request["uid"], request["uid"])
    attempt(granted, "network namespace", enter_network_namespace)
    if root:
        os.setgroups([])
        os.setresgid(*[request["uid"]] * 3)
        os.setresuid(*[request["uid"]] * 3)
        call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # otherwise /proc/self/uid_map still belongs to root
        attempt(granted, "user namespace", enter_user_namespace)
    own_count = "user namespace" in granted and tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 14)
    set_limits(limits, own_count)
    os.chdir(folder)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.write(status, json.dumps(granted).encode())
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "USER": "user",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "PYTHONHASHSEED": "0",  # the same program gets the same verdict
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
    # The worker is passed as text, since its file cannot be seen from inside. The process loses its capabilities here,
    # because its user is not 0 when it starts the new program.
    python = request["python"]
    os.execve(python, [python, "-PsB", "-c", request["worker"], str(control)], environment)


def enter_user_namespace() -> None:
    """Become user 1000, the only user of a new user namespace, and forbid further namespaces in it.

    In a further one the program would have capabilities again, e.g. to mount a file system without limits.
    """
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", CLONE_NEWUSER)
    for path, text in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{INSIDE_ID} {uid} 1"),
        ("/proc/self/gid_map", f"{INSIDE_ID} {gid} 1"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ):
        with open(path, "w") as file:
            file.write(text)


def enter_mount_namespace(folder: str, packages: list[str], disk_bytes: int) -> None:
    """Hide all files except an empty folder and, read-only, the system, Python and its packages.

    Args:
        folder: An empty folder; the new root is mounted on it in the new namespace, and outside it stays empty.
        packages: Folders of the interpreter and of installed packages.
        disk_bytes: Size of `/box`, which is in memory and ends with the namespace.
    """
    call("unshare", CLONE_NEWNS)
    call("mount", "none", "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4k,mode=755")
    try:
        fill_root(folder, packages, disk_bytes)
    except OSError:
        call("umount2", folder, MNT_DETACH)
        raise
    call("pivot_root", folder, f"{folder}/old")
    os.chdir("/")
    call("umount2", "/old", MNT_DETACH)
    os.rmdir("/old")
    read_only("/", 0)


def fill_root(root: str, packages: list[str], disk_bytes: int) -> None:
    """Mount what a program may see into the empty folder `root`."""
    os.umask(0o022)
    for source in (*SYSTEM, *SETTINGS, *DEVICES, *sorted(packages)):
        target = root + source
        if not os.path.exists(source) or os.path.exists(target):  # it exists where a folder above it is mounted
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if source in SYSTEM and os.path.islink(source):
            os.symlink(os.readlink(source), target)
            continue
        if os.path.isdir(source):
            os.mkdir(target)
        else:
            os.mknod(target)
        call("mount", source, target, None, MS_BIND | MS_REC, None)
        if source not in DEVICES:
            read_only(target, AT_RECURSIVE)
    for name in (BOX, "/proc", "/old", "/etc"):
        os.makedirs(root + name, exist_ok=True)
    with open(root + "/etc/passwd", "w") as file:
        file.write(f"user:x:{INSIDE_ID}:{INSIDE_ID}::{BOX}:/bin/sh\n")
    with open(root + "/etc/hosts", "w") as file:
        file.write("127.0.0.1 localhost\n")
    for name in ("/tmp", "/dev/shm"):
        if not os.path.exists(root + name):
            os.symlink(BOX, root + name)
    options = f"size={disk_bytes},nr_inodes=10k,mode=777"
    call("mount", "tmpfs", root + BOX, "tmpfs", MS_NOSUID | MS_NODEV, options)
    call("mount", "proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


def read_only(path: str, flags: int) -> None:
    """Make a mount read-only, and with AT_RECURSIVE all mounts below it (Linux 5.12)."""
    wanted = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, wanted, len(wanted))


def enter_network_namespace() -> None:
    """Leave only a loopback device of its own, and shared memory of its own."""
    call("unshare", CLONE_NEWNET | CLONE_NEWIPC)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        name, flags = struct.unpack("16sh22x", request)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | IFF_UP))


def set_limits(limits: dict, own_count: bool) -> None:
    """Set the limits of this process and all that it starts.

    Args:
        limits: `collab.sandbox.run.Limits` as a dict.
        own_count: The kernel counts only the processes of the namespace, not all processes of this user.
    """
    processes = limits["processes"] + (0 if own_count else tasks_of(os.getuid()))
    for what, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def tasks_of(uid: int) -> int:
    """The number of threads of a user on this machine, which older kernels count in every namespace."""
    count = 0
    for _, text in of_all_processes("status"):
        lines = dict(line.split(b":", 1) for line in text.splitlines())
        if int(lines[b"Uid"].split()[0]) == uid:
            count += int(lines[b"Threads"])
    return count


def of_all_processes(name: str) -> Iterator[tuple[int, bytes]]:
    """Process id and contents of the file `name` that /proc has for each process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/{name}", "rb") as file:
                    yield int(entry), file.read()
            except OSError:
                continue  # the process has ended
