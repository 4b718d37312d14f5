"""Mutation testing: plants a fault in a core module and runs the tests of that module.

    make mutants                                      300 mutants of the core modules, seed 0
    python tests/mutants.py --count 100 --seed 7      another sample
    python tests/mutants.py stop_core/model/*.py      other modules

cosmic-ray provides the operators. The script first draws a place in the source and then an
operator: an addition has twelve mutants and a condition one. Each mutant is tested in a temporary
copy of the repository, in a process that is forked from one that has imported torch. The script
prints each survivor as a diff and the share of mutants that were caught, and exits with 1 if the
share is below 95%. The modules, their tests and the equivalent mutants are in mutants.yaml.
"""

import argparse
import ast
import contextlib
import difflib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
LISTS = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text())
EQUIVALENT = [[f"-{one['from']}", f"+{one['to']}"] for one in LISTS["equivalent"]]
# Functions that are called on their class, as those of autograd, need no decorator.
NEEDLESS = {"-", "-    @staticmethod"}
# These compare None, True and small integers alike.
SAME = ("_Is_Eq", "_Eq_Is", "_IsNot_NotEq", "_NotEq_IsNot")
HEAVY = ["torch", "open_clip", "optuna", "pandas", "pytest", "hypothesis", "mlflow", "av"]
DATA_LIMIT = 8 << 30  # bytes; some mutants allocate without end
GOAL = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    core = [f"{folder}/{name}.py" for folder, names in LISTS["core"].items() for name in names]
    parser.add_argument("modules", nargs="*", default=core, help="default: the core modules")
    parser.add_argument("--count", type=int, default=300, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    options = parser.parse_args()
    tests = {name: tests_of(Path(name)) for name in options.modules}
    places = {(name, *at): ways for name in tests for at, ways in ways_by_place(name).items()}
    print(f"{len(places)} places in {len(tests)} modules", flush=True)
    chance = random.Random(options.seed)
    drawn = chance.sample(sorted(places), min(options.count, len(places)))
    mutants = [(place[0], *chance.choice(places[place])) for place in drawn]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.processes):
            trees.put(copy_of_repository(Path(folder) / f"tree{number}"))
        files = sorted({file for name, *_ in mutants for file in tests[name]})
        times = pool.map(lambda file: seconds_unchanged(trees, file), files)
        seconds = dict(zip(files, times, strict=True))
        print(f"without mutants, the tests pass in {sum(seconds.values()):.0f} s", flush=True)
        usual = {name: sum(seconds.get(file, 0) for file in own) for name, own in tests.items()}
        found = pool.map(lambda m: outcome(trees, tests[m[0]], usual[m[0]], *m), mutants)
        for number, one in enumerate(found, 1):
            counts[one] += 1
            if number % 25 == 0:
                print(f"{number} of {len(mutants)}: {dict(counts)}", flush=True)
    tested = counts["caught"] + counts["survived"]
    share = counts["caught"] / max(1, tested)
    print(f"{dict(counts)}: {share:.1%} of {tested} caught, seed {options.seed}")
    return 0 if share >= GOAL else 1


def tests_of(module: Path) -> list[str]:
    """Returns the mirrored test file, those of mutants.yaml, and the tests of all sources."""
    mirrored = ROOT / "tests" / module.with_name(f"test_{module.name}")
    names = LISTS["tests"].get(module.stem, [])
    rooms = [ROOT / "tests" / room for room in (module.parts[0], "security")]
    more = [path for name in names for room in rooms for path in room.rglob(f"test_{name}.py")]
    found = [path for path in dict.fromkeys([mirrored, *more]) if path.exists()]
    if not found:
        raise SystemExit(f"{module} has no {mirrored}; add it, or name its tests in mutants.yaml")
    return [*(str(path.relative_to(ROOT)) for path in found), "tests/test_guards.py"]


def ways_by_place(name: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Returns the operators that apply at each line and column, with their occurrence."""
    source = (ROOT / name).read_text()
    nodes, types = list(ast_nodes(get_ast(source))), annotations(source)
    found = defaultdict(list)
    for operator in operator_names():
        kind = get_operator(operator)
        if kind.arguments() or operator.endswith(SAME):
            continue
        starts = (start for node in nodes for start, _ in kind().mutation_positions(node))
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in types):
                found[start].append((operator, occurrence))
    return found


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the positions of type annotations, which mypy checks."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    ends = [(n, n.end_lineno or 0, n.end_col_offset or 0) for n in found if n is not None]
    return [((n.lineno, n.col_offset), (line, column)) for n, line, column in ends]


def copy_of_repository(folder: Path) -> Path:
    """Copies the files that git tracks or would add."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, out.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def seconds_unchanged(trees: "SimpleQueue[Path]", file: str) -> float:
    """Returns the duration of a file of tests without a mutant; exits if they fail."""
    tree, start = trees.get(), time.monotonic()
    failed = run_tests(tree, [file], 600)
    log = (tree / "log.txt").read_text()
    trees.put(tree)
    if failed:
        raise SystemExit(f"{log[-3000:]}\n{file} fails without a mutant; fix it first")
    return time.monotonic() - start


def outcome(
    trees: "SimpleQueue[Path]", tests: list[str], seconds: float, name: str, way: str, number: int
) -> str:
    """Returns what becomes of one mutant, in a word; prints one that survived as a diff."""
    source = (ROOT / name).read_text()
    try:
        mutated = mutate_code(source, get_operator(way)(), number)
    except AttributeError:  # cosmic-ray cannot replace an exception whose name has a dot
        return "impossible"
    before, after = source.splitlines(), mutated.splitlines()
    diff = list(difflib.unified_diff(before, after, name, name, n=2, lineterm=""))
    changed = [line for line in diff[2:] if line[0] in "+-"]
    if set(changed) <= NEEDLESS or changed in EQUIVALENT:
        return "equivalent"
    tree = trees.get()
    (tree / name).write_text(mutated)
    failed = run_tests(tree, tests, 60 + 5 * seconds)
    shutil.copy2(ROOT / name, tree / name)
    # Python recognizes stale bytecode only by the second and the size of its source.
    for compiled in (tree / name).parent.glob(f"__pycache__/{Path(name).stem}.*"):
        compiled.unlink()
    trees.put(tree)
    if not failed:
        print("\n".join([f"\nsurvived: {way}, {' '.join(tests)}", *diff]), flush=True)
    return "caught" if failed else "survived"


def run_tests(tree: Path, tests: list[str], timeout: float) -> bool:
    """Returns whether the tests fail, crash or hang with the modules of `tree`."""
    process = multiprocessing.get_context("forkserver").Process(target=_pytest, args=(tree, tests))
    process.start()
    process.join(timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that the tests started
    process.join()
    return process.exitcode != 0


def _pytest(tree: Path, tests: list[str]) -> None:
    os.setsid()
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    sys.path.insert(0, str(tree))
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    import pytest
    from hypothesis import Phase, settings

    # To shrink an example that fails takes minutes, and the mutant is caught before.
    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")
    fast = ["-x", "-q", "-m", "not slow and not cluster", "-p", "no:cacheprovider"]
    os._exit(pytest.main([*fast, f"--basetemp={tree}.tmp", "--hypothesis-seed=0", *tests]))


if __name__ == "__main__":
    multiprocessing.get_context("forkserver").set_forkserver_preload(HEAVY)
    raise SystemExit(main())
