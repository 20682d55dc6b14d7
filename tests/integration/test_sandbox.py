"""What untrusted programs can and cannot do: to the machine, and to the verdict. As root, and as a plain user.

The programs of a user run in one batch, in a process of that user's (`locked_in.py`); each test reads one verdict.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from composing import load_config
from locked_in import SECRET_VALUE, kernel_gives_namespaces, run_as

from collab.config.checks import check
from collab.sandbox.run import run_program
from collab.util.errors import BadInput

USERS = ["me", "plain"] if os.geteuid() == 0 else ["me"]  # only root can become another user
BARE_USERS = ["bare", "bare_root"] if os.geteuid() == 0 else []
NAMESPACES = ["user namespace", "pid namespace", "mount namespace", "network namespace"]

ADDS = "def task_func(a, b):\n    return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
CASES = """
import unittest
class TestCases(unittest.TestCase):
    def test_small(self):
        self.assertEqual(task_func(1, 2), 3)
    def test_large(self):
        self.assertEqual(task_func(10, 20), 30)
"""
IN_STEPS = """
import unittest
class TestCases(unittest.TestCase):
    def test_in_steps(self):
        found = task_func(1, 2)
        self.assertEqual(found, 3)
        del found
"""
SKIPS_LINES = """
import sys
def skip(frame, event, arg):
    if frame.f_code.co_filename == "<tests>" and event == "line":
        try: frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)
        except ValueError: pass
    return skip
"""
MARK = f"mark{os.getpid()}"  # a name that processes of these tests give themselves, to be found by
NAMED = f"open('/proc/self/comm', 'w').write({MARK!r})\n"

# name -> arguments; every program here does what the tests ask for
HONEST = {
    "test cases": dict(program=ADDS, tests=CASES),
    "check": dict(program=ADDS.replace("task_func", "add"), tests=CHECK, entry_point="add"),
    "named like a builtin": dict(
        program="def sum(a, b):\n    return a + b\n", tests=CASES.replace("task_func", "sum") + CHECK, entry_point="sum"
    ),
    "both": dict(program=ADDS, tests=CASES + CHECK),
    "failing tests of its own": dict(
        program=ADDS + "import unittest\nclass Mine(unittest.TestCase):\n    def test_mine(self): self.fail()\n"
        "if __name__ == '__main__': unittest.main()",
        tests=CASES,
    ),
    "mocks, fixtures and a skipped test": dict(
        program="import os\ndef task_func(path):\n    return len(open(path).read()), os.getcwd()\n",
        tests="""
import unittest
from unittest.mock import mock_open, patch
def setUpModule():
    global folder
    folder = "/somewhere"
class TestCases(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = "four"
    @patch("os.getcwd")
    @patch("builtins.open", new_callable=mock_open, read_data="four")
    def test_mocked(self, opened, getcwd):
        getcwd.return_value = folder
        self.assertEqual(task_func("x"), (len(self.text), folder))
        opened.assert_called_once_with("x")
    def test_sub(self):
        for number in range(3):
            with self.subTest(number):
                self.assertGreaterEqual(number, 0)
    @unittest.skip("not here")
    def test_skipped(self):
        self.fail()
""",
    ),
    "files and processes": dict(
        program="""
import json, multiprocessing, subprocess, tempfile
from dataclasses import dataclass
@dataclass
class Point:
    x: int
def square(x):
    return x * x
def task_func():
    with open("here.json", "w") as file:
        json.dump([1], file)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("x")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    echoed = subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout
    return squares, echoed, Point(1) == Point(1)
""",
        tests="def check(f):\n    assert f() == ([1, 4, 9], 'hi\\n', True), f()\n",
    ),
    "objects that compare": dict(
        program="""
from functools import total_ordering
@total_ordering
class Amount(int):
    def __eq__(self, other): return int(self) == int(other)
    def __lt__(self, other): return int(self) < int(other)
class Steps:
    def __init__(self): self.left = iter([1, 2])
    def __iter__(self): return self.left
def task_func():
    return Amount(3), Steps()
""",
        tests="def check(f):\n    amount, steps = f()\n    assert amount == 3 and list(steps) == [1, 2]\n",
    ),
    "reads its own source": dict(
        program="""
import ast, doctest, inspect, os, sys, traceback
def double(x):
    '''Twice x.

    >>> double(2)
    4
    '''
    return 2 * x
class Box:
    pass
halve = lambda x: x / 2
def task_func():
    assert inspect.getsource(double).endswith("    return 2 * x\\n"), inspect.getsource(double)
    assert inspect.getsource(Box) == "class Box:\\n    pass\\n"
    assert inspect.getsource(halve) == "halve = lambda x: x / 2\\n"
    assert "def task_func" in inspect.getsource(sys.modules[__name__])
    assert inspect.getsourcelines(Box)[1] == 10 and os.path.basename(__file__)
    assert ast.parse(inspect.getsource(double)).body[0].name == "double"
    assert doctest.testmod(sys.modules[__name__]) == (0, 1)
    try: 1 / 0
    except ZeroDivisionError: assert "try: 1 / 0" in traceback.format_exc()
    return os.listdir(".")
""",
        tests="""
import inspect
def check(f):
    assert f() == [] and "def task_func" in inspect.getsource(f)
""",
    ),
    "a server of its own": dict(
        program="""
import socket
def task_func():
    server = socket.create_server(("localhost", 0))
    client = socket.create_connection(server.getsockname())
    server.accept()[0].sendall(b"hello")
    return client.recv(5)
""",
        tests="def check(f):\n    assert f() == b'hello'\n",
    ),
}

NUMPY = dict(
    program="import numpy as np\nfrom numpy import *\ndef task_func(n): return np.ones(n)\n",
    tests="def check(candidate):\n    assert sum(candidate(3)) == max(3.0, 2.0) and candidate(2).tolist() == [1, 1]\n",
    limits={"memory_bytes": 2 << 30, "processes": 64},  # its matrix library reserves both
)

# name -> program; `task_func` is wrong in each, and yet the program would like to pass. These by how they end, ...
ENDING_FAKES = {
    "ends the process": "import os\nos._exit(0)",
    "ends the process when called": "import os\ndef task_func(a, b):\n    os._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "exits when called": "def task_func(a, b):\n    raise SystemExit(0)",
    "is interrupted": "def task_func(a, b):\n    raise KeyboardInterrupt",
    "ends the process at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef task_func(a, b): return 0",
    "ends the process from a thread": (
        "import os, threading, time\nthreading.Timer(0.05, os._exit, [0]).start()\n"
        "def task_func(a, b):\n    time.sleep(5)"
    ),
    "ends the process and leaves a child": "import os\nif os.fork(): os._exit(0)\ndef task_func(a, b): return 0",
    "is replaced": "import os\nos.execv('/bin/true', ['true'])",
    "prints a result": (
        "import os\nfor text in ('passed', 'OK', '{\"outcome\": \"passed\"}', 'Ran 2 tests in 0.001s\\n\\nOK'):\n"
        "    print(text, flush=True)\n    os.write(2, text.encode())\nos._exit(0)"
    ),
    "writes a result everywhere": (
        "import os\nfor fd in range(3, 256):\n"
        "    try: os.write(fd, (8).to_bytes(8, 'big') + b'\\npassed\\n')\n    except OSError: pass\n"
        "def task_func(a, b): return 0"
    ),
}
# ... and these from inside the interpreter, where it does not matter whose process it is.
INSIDE_FAKES = {
    "answers with every token in its memory": """
import gc, os, re
def task_func(a, b):
    known = set()
    for line in open("/proc/self/maps"):
        span, mode = line.split()[:2]
        if "rw" in mode:
            start, end = (int(x, 16) for x in span.split("-"))
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(start)
                try: known |= set(re.findall(rb"[0-9a-f]{32}", memory.read(end - start)))
                except OSError: pass
    for fd in range(3, 64):
        for token in [token for token in known if re.search(b"[a-f]", token)]:  # others are digits of some table
            body = token + b"\\npassed\\n"
            try: os.write(fd, len(body).to_bytes(8, "big") + body)
            except OSError: pass
    os._exit(0)
""",
    "skips": "import unittest\ndef task_func(a, b):\n    raise unittest.SkipTest('later')",
    "has tests of its own": (
        "import unittest\nclass Mine(unittest.TestCase):\n    def test_mine(self): pass\n"
        "def check(candidate): pass\ndef task_func(a, b): return 0"
    ),
    "replaces an assertion": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\ndef task_func(a, b): return 0"
    ),
    "replaces an assertion when called": (
        "def task_func(a, b):\n    import unittest\n    if unittest.TestCase.assertEqual is nothing: return 0\n"
        "    unittest.TestCase.assertEqual = nothing\n    return a + b\ndef nothing(*a): pass"
    ),
    "replaces the code of an assertion": (
        "import unittest\ndef nothing(self, first, second, msg=None): pass\n"
        "unittest.TestCase.assertEqual.__code__ = nothing.__code__\ndef task_func(a, b): return 0"
    ),
    "intercepts all assertions": (
        "import unittest\ndef get(self, name):\n"
        "    return (lambda *a: None) if name == 'assertEqual' else object.__getattribute__(self, name)\n"
        "unittest.TestCase.__getattribute__ = get\ndef task_func(a, b): return 0"
    ),
    "replaces the runner": (
        "import unittest\nunittest.TestCase.run = lambda self, result=None: result.addSuccess(self)\n"
        "def task_func(a, b): return 0"
    ),
    "replaces the suite": (
        "import unittest, unittest.suite\nunittest.suite.TestSuite.run = lambda self, result, debug=False: result\n"
        "def task_func(a, b): return 0"
    ),
    "loads no tests": (
        "import unittest\nunittest.TestLoader.getTestCaseNames = lambda self, case: []\ndef task_func(a, b): return 0"
    ),
    "replaces unittest": """
import sys, types
fake = types.ModuleType("unittest")
class TestCase:
    def assertEqual(self, *a): pass
fake.TestCase = TestCase
sys.modules["unittest"] = fake
def task_func(a, b): return 0
""",
    "replaces a builtin": ("import builtins\nbuiltins.issubclass = lambda *a: False\ndef task_func(a, b): return 0"),
    "blinds whoever looks": (
        "import builtins, types, unittest\nbuiltins.id = lambda value: 0\ntypes.FunctionType = int\n"
        "unittest.TestCase.assertEqual = lambda *a, **k: None\ndef task_func(a, b): return 0"
    ),
    "returns what equals anything": (
        "class Any:\n    def __eq__(self, other): return True\ndef task_func(a, b): return Any()"
    ),
    "returns a number that equals anything": (
        "class Any(int):\n    def __eq__(self, other): return True\n"
        "    __hash__ = None\ndef task_func(a, b): return Any()"
    ),
    "returns a number that equals all of its type": (
        "class Any(int):\n    def __eq__(self, other): return type(other) is int\n"
        "    __hash__ = None\ndef task_func(a, b): return Any()"
    ),
    "leaves a module for another one": (
        "import os, sys\nos.mkdir('unittest')\nopen('unittest/__init__.py', 'w').write('TestCase = object')\n"
        "sys.path.insert(0, '.')\ndel sys.modules['unittest']\ndef task_func(a, b): return 0"
    ),
    "returns what unittest has for anything": "from unittest.mock import ANY\ndef task_func(a, b): return ANY",
    "does not compile": "def task_func(a, b) return a + b",
    "is no text": "\ud800\0",
    "is empty": "",
    "is wrong": "def task_func(a, b): return 0",
}
# name -> (program, tests) where a fake has to fit its tests
FITTED_FAKES = {
    "ends the process before check": ("import os\ndef task_func(a, b):\n    os._exit(0)", CHECK),
    "equals anything in check": (INSIDE_FAKES["returns what equals anything"], CHECK),
    "returns mocks that equal anything": (
        "from unittest.mock import ANY, MagicMock\ndef task_func(a, b):\n    mock = MagicMock()\n"
        "    mock.__eq__.return_value = 1\n    return [mock, (ANY, {'x': ANY})]",
        "def check(candidate):\n    assert candidate(1, 2) == [1, (2, {'x': 3})]\n",
    ),
    "returns what differs from nothing": (
        "class Any(float):\n    def __sub__(self, other): return 0.0\ndef task_func(a, b): return Any()",
        "def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6\n",
    ),
    "returns what is in between": (
        "class Any(float):\n    def __lt__(self, other): return True\n    __gt__ = __lt__\n"
        "def task_func(a, b): return Any()",
        "def check(candidate):\n    assert 2 < candidate(1, 2) < 4\n",
    ),
    "returns what holds everything": (
        "class Any(list):\n    def __contains__(self, item): return True\ndef task_func(a, b): return Any()",
        "def check(candidate):\n    assert 3 in candidate(1, 2)\n",
    ),
    "hides what equals anything in an object": (
        "class Any:\n    def __eq__(self, other): return 1\nclass Box:\n    value = Any()\n"
        "def task_func(a, b): return Box()",
        "def check(candidate):\n    assert candidate(1, 2).value == 3\n",
    ),
    "has a builtin of its own": (
        "def abs(x): return 0\ndef task_func(a, b): return 0",
        "def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6\n",
    ),
    "replaces a function that the tests use": (
        "import math\nmath.isclose = lambda *a, **k: True\ndef task_func(a, b): return 0",
        "import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n",
    ),
    "replaces it by another one that is there": (
        "import math\nmath.isclose = max\ndef task_func(a, b): return 0",
        "import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n",
    ),
    "replaces one of a module that comes late": (
        "import numpy.testing\nnumpy.testing.assert_allclose = print\ndef task_func(a, b): return 0",
        "import numpy as np\ndef check(candidate):\n    np.testing.assert_allclose(candidate(1, 2), 3)\n",
    ),
    "replaces a method that the tests use": (
        "from unittest import mock\nmock.NonCallableMock.assert_called_once_with = print\n"
        "def task_func(a, b): return 0",
        "from unittest.mock import Mock\ndef check(candidate):\n    told = Mock()\n    candidate(told, 1)\n"
        "    told.assert_called_once_with(1)\n",
    ),
    "replaces a module that the tests use": (
        "import sys, types\nfake = types.ModuleType('math')\nfake.isclose = lambda *a: True\n"
        "sys.modules['math'] = fake\ndef task_func(a, b): return 0",
        "import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n",
    ),
    "replaces a module by what is there": (
        "import sys, types\nfake = types.ModuleType('math')\nfake.isclose = max\n"
        "sys.modules['math'] = fake\ndef task_func(a, b): return 0",
        "import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n",
    ),
    "changes the test that runs": (
        "import gc, unittest\ndef task_func(a, b):\n    for test in gc.get_objects():\n"
        "        if isinstance(test, unittest.TestCase): test.assertEqual = print\n    return 0",
        IN_STEPS,
    ),
    "changes the result of the tests": (
        "import gc, unittest\ndef task_func(a, b):\n    for kept in gc.get_objects():\n"
        "        if isinstance(kept, unittest.TestResult):\n"
        "            kept.addFailure = lambda test, error, kept=kept: kept.addSuccess(test)\n    return 0",
        CASES,
    ),
    "skips lines of the tests": (
        SKIPS_LINES + "sys.settrace(skip)\ndef task_func(a, b): return 0",
        IN_STEPS,
    ),
    "skips lines of the test that calls it": (
        SKIPS_LINES + "def task_func(a, b):\n    sys.settrace(skip)\n    sys._getframe(2).f_trace = skip\n    return 0",
        "def check(candidate):\n    found = candidate(1, 2)\n    assert found == 3\n    del found\n",
    ),
}

ENDLESS = {"seconds": 0.5}
# name -> (program, limits, outcomes that are in order); without limits it would take the machine down, or for ever
GREEDY = {
    "loops": ("while True: pass", ENDLESS, {"wall time"}),
    "sleeps": ("import time\ntime.sleep(100)", ENDLESS, {"wall time"}),
    "burns CPU time and ignores signals": (
        "import signal\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        {"cpu_seconds": 1},
        {"cpu time"},
    ),
    "forks for ever": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ENDLESS, {"wall time"}),
    "starts threads for ever": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[100]).start()",
        {},
        {"failed"},
    ),
    "allocates 100 GB": ("data = bytearray(100 << 30)", {}, {"failed"}),
    "allocates 100 GB piece by piece": ("data = []\nwhile True: data.append(bytearray(1 << 20))", {}, {"failed"}),
    "allocates in many processes": (
        "import os, time\nfor _ in range(6):\n    if not os.fork():\n        data = b'x' * (90 << 20)\n"
        "        time.sleep(100)\ntime.sleep(100)",
        {},
        {"memory"},
    ),
    "shares memory between processes": (
        "import mmap, os, time\nfor _ in range(6):\n    if not os.fork():\n        data = mmap.mmap(-1, 90 << 20)\n"
        "        data.write(b'x' * (90 << 20))\n        time.sleep(100)\ntime.sleep(100)",
        {},
        {"memory"},
    ),
    "prints for ever": ("while True: print('x' * 1000)", {}, {"output"}),
    "prints for ever in a child": (
        "import os, time\nif os.fork(): time.sleep(100)\nwhile True: os.write(2, b'x' * 1000)",
        {},
        {"output"},
    ),
    "writes a large file": ("open('x', 'wb').write(b'x' * (2 << 20))", {}, {"failed"}),
    "opens files for ever": ("files = []\nwhile True: files.append(open('/dev/null'))", {}, {"failed"}),
    "crashes": ("import ctypes\nctypes.string_at(0)", {}, {"ended early"}),
}
# bound by namespaces only
GREEDY_FOR_FILES = {
    "writes many files": (
        "import itertools\nfor n in itertools.count(): open(f'{n}', 'wb').write(b'x' * (1 << 19))",
        {},
        {"failed"},
    ),
    "makes files for ever": ("import itertools\nfor n in itertools.count(): open(f'{n}', 'wb')", {}, {"failed"}),
}

# Of users other than the one who runs these tests: one of each kind of limit. `make test-all` runs all as a plain user.
HONEST_FEW = ["test cases", "check"]
ENDING_FEW = ["ends the process", "ends the process and leaves a child", "writes a result everywhere"]
GREEDY_FEW = ["sleeps", "forks for ever", "allocates in many processes", "prints for ever in a child"]
FILES_FEW = ["writes many files"]
FEW = [*HONEST_FEW, *ENDING_FEW, *GREEDY_FEW, *FILES_FEW, "leaves", "kills its parent", "pries"]


def of_users(names, few):
    """(user, name) of tests: all programs as whoever runs them; as a plain user the few, the others are slow."""
    return [
        pytest.param(user, name, marks=[] if user == "me" or name in few else pytest.mark.slow)
        for user in USERS
        for name in names
    ]


# Leaves something behind, and does well by its tests.
LEAVES = (
    ADDS
    + f"""
import os, signal, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        {NAMED}
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(100)
    os._exit(0)
os.makedirs("deep/" * 100)
open("file", "w").write("x")
os.chmod("deep", 0)
"""
)
# Tries what it should not be able to, and tells as JSON what came of it.
PRIES = """
import ctypes, json, os, pathlib, signal, socket
told = {}
def attempt(name, action):
    try: told[name] = action()
    except Exception as error: told[name] = type(error).__name__
def read_environments():
    found = dict(os.environ)
    for path in pathlib.Path("/proc").glob("*/environ"):
        try: found[str(path)] = path.read_bytes().decode()
        except OSError: pass
    return found
def call(name, *args):
    return ctypes.CDLL(None)[name](*args)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
attempt("environment", read_environments)
attempt("home", lambda: os.listdir(HOME))
attempt("secret", lambda: open(OUTSIDE + "/secret").read())
for place in (OUTSIDE, "/", "/usr", "/etc", "/dev", PREFIX):
    attempt("write " + place, lambda: open(place + "/written", "w").write("x"))
attempt("write here", lambda: open("written", "w").write("x"))
attempt("folder", lambda: sorted(os.listdir(".")))
attempt("loopback", lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5) and "connected")
attempt("abroad", lambda: socket.create_connection(("192.0.2.1", 80), timeout=5) and "connected")
attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + MARK) or "connected")
attempt("processes", lambda: [name for name in os.listdir("/proc") if name.isdigit()])
attempt("capabilities", lambda: status["CapEff"].strip())
attempt("user namespace", lambda: call("unshare", 1 << 28))
attempt("mount", lambda: call("mount", b"none", b"/box", b"tmpfs", 0, None))
attempt("user", lambda: os.setuid(0))
for target in (os.getppid(), 1, -1) if os.getpid() == 1 else ():
    attempt(f"kill {target}", lambda: os.kill(target, signal.SIGKILL))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def listener():
    """A TCP port and an abstract socket of this machine that a program should not get through to."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{MARK}")
        abstract.listen()
        yield tcp


@pytest.fixture(scope="module")
def folder():
    """Where everybody may write; with a file that everybody may read."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        (Path(path) / "secret").write_text(SECRET_VALUE)
        yield path


@pytest.fixture(scope="module")
def verdict(listener, folder):
    """Called with a user and the name of a program: its verdict. A user's programs run at the first call.

    As a plain user the few run then, and all others at the first call for one of them.
    """
    done, later = {}, {}

    def get(user, name):
        if user not in done:
            strict = run_as(user, {"strict": dict(program=ADDS, tests=CASES, strict=True)}, folder)
            if user in USERS and "refused" in strict["strict"]:  # tests may be left out then, but not by our mistake
                assert not kernel_gives_namespaces(user), strict
            programs = programs_of(user, "refused" not in strict["strict"], listener, folder)
            later[user] = {} if user == "me" else {name: programs.pop(name) for name in [*programs] if name not in FEW}
            done[user] = strict | run_as(user, programs, folder)
        if name in later[user]:
            more = run_as(user, later[user], folder)
            done[user] |= more | {"left": done[user]["left"] + more["left"]}
            later[user] = {}
        if name not in done[user]:
            pytest.skip("the kernel gives no namespaces here")
        return done[user][name]

    get.done = done
    return get


def programs_of(user, isolated, listener, folder):
    bare = user in BARE_USERS
    programs = {name: arguments for name, arguments in HONEST.items() if not bare or name in HONEST_FEW}
    programs["leaves"] = dict(program=LEAVES, tests=CASES)
    programs["kills its parent"] = dict(program=f"import os\nos.kill(os.getppid(), 9)\n{ADDS}", tests=CASES)
    greedy = {name: GREEDY[name] for name in (GREEDY_FEW if bare else GREEDY)}
    if isolated:  # else these would get at the files and processes of the user
        greedy |= GREEDY_FOR_FILES
        told = dict(OUTSIDE=folder, PREFIX=sys.prefix, HOME=str(Path.home()), PORT=listener.getsockname()[1], MARK=MARK)
        assigned = "".join(f"{name} = {value!r}\n" for name, value in told.items())
        programs["pries"] = dict(program=assigned + PRIES + ADDS, tests=CASES)
    for name, (program, limits, _) in greedy.items():
        programs[name] = dict(program=program, limits=limits, tests=CASES)
    if not bare:
        programs |= {name: dict(program=program, tests=CASES) for name, program in ENDING_FAKES.items()}
    if user == "me":
        programs["numpy"] = NUMPY
        programs |= {name: dict(program=program, tests=CASES) for name, program in INSIDE_FAKES.items()}
        programs |= {name: dict(program=program, tests=tests) for name, (program, tests) in FITTED_FAKES.items()}
    return programs


@pytest.mark.parametrize(("user", "name"), of_users(HONEST, HONEST_FEW))
def test_an_honest_program_passes(verdict, user, name):
    found = verdict(user, name)
    assert found["outcome"] == "passed", found


def test_installed_packages_can_be_used(verdict):
    found = verdict("me", "numpy")
    assert found["outcome"] == "passed", found


@pytest.mark.parametrize("user", BARE_USERS)
@pytest.mark.parametrize("name", HONEST_FEW)
def test_an_honest_program_passes_without_namespaces(verdict, user, name):
    found = verdict(user, name)
    assert found["outcome"] == "passed", found


@pytest.mark.parametrize(("user", "name"), of_users(ENDING_FAKES, ENDING_FEW))
def test_a_fake_that_ends_does_not_pass(verdict, user, name):
    found = verdict(user, name)
    assert found["outcome"] in ("failed", "ended early"), found


@pytest.mark.parametrize("name", [*INSIDE_FAKES, *FITTED_FAKES])
def test_a_fake_from_inside_does_not_pass(verdict, name):
    found = verdict("me", name)
    assert found["outcome"] in ("failed", "ended early"), found


@pytest.mark.parametrize(
    "name",
    [
        "replaces an assertion",
        "replaces an assertion when called",
        "replaces the code of an assertion",
        "intercepts all assertions",
        "replaces the runner",
        "loads no tests",
    ],
)
def test_what_a_program_changed_is_named(verdict, name):
    assert "the program changed Test" in verdict("me", name)["detail"]


@pytest.mark.parametrize(("user", "name"), of_users(GREEDY, GREEDY_FEW))
def test_a_greedy_program_ends_in_a_verdict(verdict, user, name):
    check_greedy(verdict(user, name), GREEDY[name][2])


@pytest.mark.parametrize("user", BARE_USERS)
@pytest.mark.parametrize("name", GREEDY_FEW)
def test_a_greedy_program_ends_in_a_verdict_without_namespaces(verdict, user, name):
    check_greedy(verdict(user, name), GREEDY[name][2])


def check_greedy(found, outcomes):
    assert found["outcome"] in outcomes, found
    assert found["seconds"] < 31
    assert len(found["output"]) <= 1 << 16


@pytest.mark.parametrize(("user", "name"), of_users(GREEDY_FOR_FILES, FILES_FEW))
def test_all_files_together_are_bound(verdict, user, name):
    found = verdict(user, name)
    assert found["outcome"] == "failed" and "No space left" in found["detail"], found


@pytest.mark.parametrize("user", USERS)
def test_everything_is_enforced_and_told(verdict, user):
    found = verdict(user, "strict")
    if "refused" in found:
        pytest.skip(found["refused"])
    assert found["outcome"] == "passed"
    assert found["missing"] == []
    assert {*NAMESPACES, "cpu time", "memory", "process count", "unprivileged user"} <= set(found["enforced"])


@pytest.mark.parametrize("user", BARE_USERS)
def test_what_is_missing_is_told_and_refused_by_strict(verdict, user):
    found = verdict(user, "check")
    assert "pid namespace" in found["missing"] and "mount namespace" in found["missing"]
    assert not set(found["missing"]) & set(found["enforced"])
    refusal = verdict(user, "strict")["refused"]
    assert all(name in refusal for name in found["missing"])
    assert "sandbox=auto" in refusal


@pytest.mark.parametrize("user", USERS)
def test_a_program_that_pries_finds_nothing(verdict, user, folder, listener):
    found = verdict(user, "pries")
    assert found["outcome"] == "passed", found  # all that it did to others has not even hurt itself
    told = json.loads(found["output"])
    assert "PATH" in told["environment"] and SECRET_VALUE not in found["output"]
    assert told["secret"] == "FileNotFoundError"
    if told["home"] != "FileNotFoundError":  # there is no more of it than leads to the interpreter
        paths = [f"{path}/" for path in (sys.prefix, sys.base_prefix)]
        assert all(any(path.startswith(f"{Path.home()}/{name}/") for path in paths) for name in told["home"])
    for place in (folder, "/", "/usr", "/etc", "/dev", sys.prefix):
        assert told[f"write {place}"] in ("OSError", "FileNotFoundError", "PermissionError"), place
        assert not (Path(place) / "written").exists()
    assert told["write here"] == 1
    assert told["folder"] == ["written"]  # which was empty
    assert told["loopback"] == "ConnectionRefusedError"  # its own loopback has nobody on it
    assert told["abroad"] == "OSError" and told["unix"] == "ConnectionRefusedError"
    assert told["processes"] == ["1"]
    assert told["capabilities"] == "0000000000000000"
    assert told["user namespace"] == told["mount"] == -1
    assert told["user"] == "OSError"  # there is no user 0 in there


@pytest.mark.parametrize("user", USERS)
def test_a_program_cannot_kill_its_parent(verdict, user):
    """Where it has a pid namespace the parent is out of its sight; a signal to "0" only reaches itself."""
    found = verdict(user, "kills its parent")
    assert found["missing"] or found["outcome"] == "passed", found


@pytest.mark.parametrize("user", BARE_USERS)
def test_without_a_pid_namespace_killing_the_parent_is_no_pass(verdict, user):
    assert verdict(user, "kills its parent")["outcome"] in ("failed", "ended early")


@pytest.mark.parametrize("user", [*USERS, *BARE_USERS])
def test_what_a_program_leaves_behind_is_gone(verdict, user, folder):
    found = verdict(user, "leaves")
    assert found["outcome"] == "passed", found
    assert verdict(user, "left") == []
    assert named_processes() == []
    assert os.listdir(folder) == ["secret"]


def test_programs_leave_no_process_and_no_file(verdict, folder):
    """Those above, the bad ones among them."""
    verdict("me", "check")
    assert all(found["left"] == [] for found in verdict.done.values())
    assert os.listdir(folder) == ["secret"]


@pytest.mark.slow
def test_200_programs_leave_no_process_and_no_file(verdict, folder):
    verdict("me", "check")
    before = sum(len(found) - 2 for found in verdict.done.values())  # without "strict" and "left"
    more = run_as("me", {f"{n}": HONEST["check"] for n in range(before, 200)}, folder)
    assert more.pop("left") == []
    assert all(found["outcome"] == "passed" for found in more.values())
    assert before + len(more) >= 200
    assert all(found["left"] == [] for found in verdict.done.values())
    assert os.listdir(folder) == ["secret"]


def named_processes():
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == MARK:
                found.append(int(comm.parent.name))
        except OSError:
            pass
    return found


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def test_a_cancelled_program_is_ended_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def cancelled():
        task = asyncio.ensure_future(run_program(NAMED + "import time\ntime.sleep(100)", CHECK))
        await asyncio.to_thread(wait_for, named_processes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert named_processes() == []
    assert list(tmp_path.iterdir()) == []


def test_programs_end_with_the_process_that_asked_for_them(folder):
    program = json.dumps({"sleeps": dict(program=NAMED + "import time\ntime.sleep(100)", tests=CHECK)})
    script = Path(__file__).parents[1] / "helpers" / "locked_in.py"
    with subprocess.Popen(
        [sys.executable, str(script), "me"], stdin=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
    ) as asking:
        asking.stdin.write(program)
        asking.stdin.close()
        wait_for(named_processes)
        asking.send_signal(signal.SIGKILL)
        wait_for(lambda: not named_processes() and os.listdir(folder) == ["secret"])


@pytest.mark.parametrize(
    "tests, message",
    [("def check(candidate:", "not Python"), ("x = 1", "no test"), ("", "no test"), ("\0", "not Python")],
)
def test_tests_that_are_none_are_refused(tests, message):
    with pytest.raises(BadInput, match=message):
        asyncio.run(run_program(ADDS, tests))


def test_a_missing_entry_point_is_told():
    found = asyncio.run(run_program(ADDS, CHECK, entry_point="add"))
    assert found.outcome == "failed" and "defines no add" in found.detail
    assert not found.passed


def test_the_config_knows_two_ways():
    config = load_config("train", ["experiment=doc_edit"])
    assert config.sandbox == "auto"
    with pytest.raises(BadInput, match="sandbox.*auto, strict"):
        check(load_config("train", ["experiment=doc_edit", "sandbox=never"]))
