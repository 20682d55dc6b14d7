"""Runs an untrusted program and its tests in one interpreter and reports how the tests went.

`supervisor.py` starts it as `python -c <this text> <fd>`, locked in. The socket `fd` brings the entry point, the names
of the modules that the tests import, the program, the tests and a token, each after its length in 8 bytes. The worker
answers with one byte that says "started", and with the report after its length in 8 bytes: token, outcome and detail on
a line each (the detail may have more lines).

The program is in this process too, so in principle it can reach everything here. A fake fails for these reasons:

- Neither the exit status nor anything printed counts: a run without a report has not passed.
- The report carries the token. Until the tests are over, the token waits in the kernel, outside the memory of this
  process. The tests wait there too until the program's top level has run.
- Each test has to succeed, and there has to be one. A test that the program has skipped is no success.
- A program that changes what it is measured with does not pass. The modules that the tests import are imported before
  the program runs. After its top level has run, and again after the tests, `unittest` and the builtins must be
  unchanged, each name in `sys.modules` must be the same module, and each function or class of a module the same. No
  module may hold a function or class of the program, no test may have a method of its own, and no trace function may
  be left.
- An object that compares equal to anything is no result, whether its class is the program's or a mock's.
- A builtin that the program redefines for itself is not redefined for the tests.
- Everything that checks and reports was looked up before the program ran, and the process ends with the report.
"""

import builtins
import functools
import itertools
import linecache
import operator
import os
import sys
import traceback
import unittest
import unittest.case
import unittest.loader
import unittest.result
import unittest.suite
import unittest.util
from sys import getprofile, gettrace, modules
from types import FunctionType, ModuleType

globals()["__builtins__"] = dict(vars(builtins))  # the program cannot change what the functions below use

PROGRAM, TESTS = "__program__", "__tests__"  # names of their modules; neither is __main__, so neither starts by itself
FILE = "<program>"
DETAIL_CHARACTERS = 4000

MODULES = (unittest, unittest.case, unittest.loader, unittest.result, unittest.suite, unittest.util, builtins)
CLASSES = tuple(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("unittest")
    }
)


class Unfit(Exception):
    """The program does not pass, whatever its tests say; the message says why."""


class Outcomes(unittest.TestResult):
    """Keeps the successes too: a test without a failure may not have run."""

    def __init__(self):
        super().__init__()
        self.failfast = True
        self.succeeded = []

    def addSuccess(self, test):
        check_methods(test)
        check_methods(self)
        self.succeeded.append(test.id())


def check_methods(value):
    """Raise Unfit if a function was put in place of a method of a test or its result."""
    for name in vars(value):
        if callable(getattr(type(value), name, None)):
            raise Unfit(f"the program changed {name} of a {type(value).__name__}")


def traced():
    """Whether a trace function is set, which could skip lines."""
    return gettrace() is not None or getprofile() is not None


def identity(value):
    """The parts that decide what a value does."""
    if type(value) is FunctionType:
        return value, value.__code__, value.__defaults__, value.__kwdefaults__
    return (value,)


def snapshot(used):
    """The identity of everything that measures: (id of its owner, its name) -> (its owner, `identity` of it).

    This is all of `unittest` and the builtins; the functions, classes and modules in all other modules except the
    program's and the tests' own; and the methods of classes in the modules that `used` names.
    """
    found = {
        (id(owner), name): (owner, *identity(value))
        for owner in (*MODULES, *CLASSES)
        for name, value in vars(owner).items()
    }
    for called, module in list(modules.items()):
        found[id(modules), called] = (modules, module)
        if type(module) is not ModuleType or called in (PROGRAM, TESTS, "__main__"):
            continue
        owners = [module]
        if called in used:
            owners += [value for value in list(vars(module).values()) if issubclass(type(value), type)]
        for owner in owners:
            for name, value in list(vars(owner).items()):
                if callable(value) or type(value) is ModuleType:
                    found.setdefault((id(owner), name), (owner, *identity(value)))
    return found


def check_unchanged(before, used):
    """Raise Unfit if something has changed; new modules, and new names in modules, are allowed."""
    after = snapshot(used)
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old is None and new[0] not in CLASSES:
            continue
        if old is None or new is None or not all(map(operator.is_, old, new)):
            owner = (old or new)[0]
            raise Unfit(f"the program changed {'sys.modules' if owner is modules else owner.__name__}.{key[1]}")


def check_kept_apart(namespace):
    """Raise Unfit if another module, or a class in one, holds a function or class of the program."""

    def is_ours(value):
        value = getattr(value, "__func__", value) if type(value) in (staticmethod, classmethod) else value
        if type(value) is FunctionType:
            return value.__globals__ is namespace
        return issubclass(type(value), type) and vars(value).get("__module__") == PROGRAM

    seen = set()
    for module in list(modules.values()):
        if type(module) is not ModuleType or vars(module) is namespace or module.__name__ == TESTS:
            continue
        for name, value in list(vars(module).items()):
            if is_ours(value):
                raise Unfit(f"the program changed {module.__name__}.{name}")
            if issubclass(type(value), type) and id(value) not in seen:
                seen.add(id(value))
                for member, held in list(vars(value).items()):
                    if is_ours(held):
                        raise Unfit(f"the program changed {module.__name__}.{name}.{member}")


def equals_anything(value, depth=3):
    """Whether a result fits every test: it equals a fresh object, or contains something that does."""
    if type(value) in (list, tuple, set, frozenset, dict):
        held = [*value, *value.values()] if type(value) is dict else value
        return depth > 0 and any(equals_anything(item, depth - 1) for item in itertools.islice(held, 1000))
    if any(vars(cls).get("__module__") == PROGRAM for cls in type(value).__mro__):
        return any(sum(holds(fits, value, thing) for thing in THINGS) > 1 for fits in COMPARISONS)
    return holds(operator.eq, value, object())


# Two things of each type, since a result may look at the type of what it is compared with. No two are equal.
THINGS: tuple = (object(), True, False, 7919, -7907, 79.19, -79.07, "one", "two", b"one", b"two", None)
THINGS += tuple(make([number]) for make in (list, tuple, set, dict.fromkeys) for number in (7919, 7907))
COMPARISONS = (
    operator.eq,
    lambda value, thing: type(value).__contains__(value, thing),  # `in` may use an iterator up
    lambda value, thing: value < thing and value > thing,
    lambda value, thing: abs(value - thing) < 1e-6,
    lambda value, thing: abs(thing - value) < 1e-6,
)


def holds(fits, value, thing):
    try:
        return bool(fits(value, thing))
    except Exception:
        return False  # for example arrays: comparing them gives an array


def watched(function, wrong):
    """`function`, with its cheats appended to `wrong`: a test that expects exceptions would catch a raised Unfit."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        if traced():
            wrong.append("left a trace function")
        if equals_anything(result):
            wrong.append("returned something that equals anything")
        return result

    return call


def check_equality(namespace):
    """Raise Unfit if objects of a class of the program equal anything, wherever in a result they may be."""
    classes: list = [object]
    known: set = set()
    for cls in classes:  # grows in the loop
        new = [subclass for subclass in type.__subclasses__(cls) if id(subclass) not in known]
        known.update(map(id, new))
        classes += new
    for cls in classes:
        equal = vars(cls).get("__eq__")
        if type(equal) is FunctionType and equal.__globals__ is namespace:
            try:
                unseen = cls.__new__(cls)
            except Exception:
                continue
            if equals_anything(unseen):
                raise Unfit(f"objects of {cls.__name__} equal anything")


def run_tests(scope, program, entry_point):
    """Run the test cases and `check(candidate)` that `scope` defines; the watched entry point is put there.

    Raises:
        Unfit: A test did not succeed, or there are none.
    """
    cases = [
        value
        for name, value in scope.items()
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == TESTS
    ]
    wrong: list = []
    if entry_point in program:
        found = program[entry_point]
        scope[entry_point] = watched(found, wrong) if callable(found) and not isinstance(found, type) else found
    loader = unittest.defaultTestLoader
    planned = [
        f"{unittest.util.strclass(case)}.{name}"
        for case in cases
        for name in loader.getTestCaseNames(case)
        if not any(getattr(held, "__unittest_skip__", False) for held in (case, getattr(case, name)))
    ]
    outcomes = Outcomes()
    unittest.TestSuite(map(loader.loadTestsFromTestCase, cases)).run(outcomes)
    for _, text in (*outcomes.errors, *outcomes.failures):
        raise Unfit(text)
    if outcomes.succeeded != planned:
        missed = [name for name in planned if name not in outcomes.succeeded]
        raise Unfit(f"no success: {', '.join(missed)} {[reason for _, reason in outcomes.skipped]}")
    check = scope.get("check")
    has_check = isinstance(check, FunctionType) and check.__globals__ is scope
    if has_check:
        if entry_point not in program:
            raise Unfit(f"the program defines no {entry_point}")
        check(scope[entry_point])
    if not planned and not has_check:
        raise Unfit("there are no tests")
    if wrong:
        raise Unfit(f"{entry_point} {wrong[0]}")


def main():
    read, write, leave, fd = os.read, os.write, os._exit, int(sys.argv[1])
    os.set_inheritable(fd, False)  # nothing that the program starts gets it
    sys.argv = [PROGRAM]

    def exactly(size):
        data = b""
        while len(data) < size:
            data += read(fd, size - len(data))
        return data

    parts = (exactly(int.from_bytes(exactly(8), "big")) for _ in range(5))
    outcome, detail = b"failed", ""
    try:
        write(fd, b"+")
        entry_point, used = next(parts).decode(), next(parts).decode().split()
        source = next(parts).decode("utf-8", "surrogatepass")
        for name in used:
            try:
                __import__(name)
            except Exception:
                pass  # the tests will raise it again
        builtin_names = frozenset(vars(builtins))
        program = ModuleType(PROGRAM)
        modules[PROGRAM] = modules["__main__"] = program
        before = snapshot(used)
        vars(program).update(__builtins__=builtins, __file__=FILE)  # not our builtins: these can be mocked
        # The program has no file; `inspect.getsource` and tracebacks look for its lines here.
        linecache.cache[FILE] = len(source), None, source.splitlines(keepends=True), FILE
        exec(compile(source, FILE, "exec", dont_inherit=True), vars(program))
        check_unchanged(before, used)
        check_kept_apart(vars(program))
        if traced():
            raise Unfit("the program left a trace function")
        tests = modules[TESTS] = ModuleType(TESTS)
        scope = vars(tests)
        scope["__builtins__"] = builtins
        scope.update((name, value) for name, value in vars(program).items() if name not in builtin_names | scope.keys())
        exec(compile(next(parts).decode(), "<tests>", "exec", dont_inherit=True), scope)
        before = snapshot(used)  # the tests may have set something themselves
        run_tests(scope, vars(program), entry_point)
        check_unchanged(before, used)
        check_kept_apart(vars(program))
        check_equality(vars(program))
        outcome = b"passed"
    except Unfit as reason:
        detail = str(reason)
    except BaseException:
        detail = traceback.format_exc(limit=-20)  # the innermost frames: there may be millions
    try:
        sys.stdout.flush()
    except BaseException:
        pass
    body = outcome + b"\n" + detail[-DETAIL_CHARACTERS:].encode("utf-8", "backslashreplace")
    *_, token = parts
    body = token + b"\n" + body
    body = len(body).to_bytes(8, "big") + body
    while body:
        body = body[write(fd, body) :]
    leave(0)


main()
