"""Mutation tests: plants a fault in a core module, and sees whether the module's tests notice.

    make mutants                                      300 mutants of the core modules, seed 0
    python tests/mutants.py --count 100 --seed 7      others
    python tests/mutants.py stop_core/model/*.py      of other modules

The operators are cosmic-ray's. A place in the source is drawn first and an operator for it second,
because there are twelve ways to change an addition and one to change a condition. Each mutant
stands in a temporary copy of the repository and has a process of its own, which is forked from one
that has imported torch. Prints each survivor as a diff, and the share that was caught; exits with 1
below 95%. `equivalent_mutants.yaml` lists changes that change no behaviour, with the reason.
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
CORE = """
    model: ablations baselines class_texts learned_context low_rank prompted selection sequences
           spatial stop temporal video_model volume
    clip: folded_block frozen_linear tower
    training: backward checkpoint ema losses objectives trainer
    evaluation: recognition retrieval statistics stored_predictions
    runtime: distributed memory
    settings: experiment stop
    storage: atomic checksums names
    cache: files hashed layout shards
    decoding: probing/containers probing/h264 probing/packets resize_weights with_pyav
    pipelines/sweeping: sample_settings space
    pipelines/tables: statistics
    pipelines/tracking: outbox
    pipelines/cli: folder_lock
"""
# The tests of a module without a test file of its own, or with more than one.
ELSEWHERE = {
    "prompted": ["stop", "training_mode"],
    "prompted_model": ["stop_model", "training_mode"],
    "spatial": ["spatial", "training_mode"],
    "temporal": ["temporal", "training_mode"],
    "ablations": ["ablations", "training_mode"],
    "baselines": ["baselines", "training_mode"],
    "learned_context": ["learned_context", "training_mode"],
    "text_context": ["text_context", "training_mode"],
    "video_model": ["video_model", "baselines"],
    "volume": ["spatial", "temporal", "training_mode"],
    "grid": ["spatial", "temporal", "training_mode"],
    "experiment": ["experiment", "ranges"],
    "config": ["config", "ranges"],
    "atomic": ["files", "durability", "names"],
    "files": ["files", "durability", "names"],
    "names": ["names", "durability"],
    "folder_lock": ["durability"],
    "outbox": ["outbox", "durability"],
    "shards": ["cache", "writing"],
    "containers": ["containers", "syntax"],
    "h264": ["h264", "syntax"],
    "packets": ["packets", "look_at_packets", "syntax"],
    "with_pyav": ["with_pyav", "look_at_packets"],
    "resize_weights": ["resizing"],
    "sample_settings": ["sample_settings", "sweep_distributions"],
    "sweep_draw": ["sweep_draw", "sweep_distributions"],
    "space": ["space", "read_space", "space_reading"],
}
# The same for None, True and whole numbers as Python has them.
SAME = ("_Is_Eq", "_Eq_Is", "_IsNot_NotEq", "_NotEq_IsNot")
HEAVY = ["torch", "open_clip", "optuna", "pandas", "pytest", "hypothesis", "mlflow", "av"]
BYTES = 8 << 30  # of data a mutant may have; some allocate without end
GOAL = 0.95


def main() -> int:
    """Draws mutants, tests them, and prints a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules to mutate; default: the core modules")
    parser.add_argument("--count", type=int, default=300, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    options = parser.parse_args()
    tests = {name: tests_of(Path(name)) for name in options.modules or core_modules()}
    places = {(name, *at): ways for name in tests for at, ways in ways_by_place(name).items()}
    print(
        f"{len(places)} places in {len(tests)} modules, {options.processes} processes", flush=True
    )
    chance = random.Random(options.seed)
    drawn = chance.sample(sorted(places), min(options.count, len(places)))
    mutants = [(place[0], *chance.choice(places[place])) for place in drawn]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.processes):
            trees.put(copy_of_repository(Path(folder) / f"tree{number}"))
        needed = {name: tests[name] for name, *_ in mutants}
        seconds = dict(
            zip(needed, pool.map(lambda n: baseline(trees, needed[n]), needed), strict=True)
        )
        print(f"unchanged, the tests pass in {sum(seconds.values()):.0f} s", flush=True)
        found = pool.map(lambda m: outcome(trees, tests[m[0]], seconds[m[0]], *m), mutants)
        counts: Counter[str] = Counter()
        for number, one in enumerate(found, 1):
            counts[one] += 1
            if number % 25 == 0:
                print(f"{number} of {len(mutants)}: {dict(counts)}", flush=True)
    counted = counts["caught"] + counts["survived"]
    share = counts["caught"] / max(1, counted)
    print(f"{dict(counts)}: {share:.1%} of {counted} caught, seed {options.seed}")
    return 0 if share >= GOAL else 1


def core_modules() -> list[str]:
    """The paths of `CORE`."""
    found: list[str] = []
    for word in CORE.split():
        if word.endswith(":"):
            room = word[:-1] if "/" in word else f"stop_core/{word[:-1]}"
        else:
            found.append(f"{room}/{word}.py")
    return found


def tests_of(module: Path) -> list[str]:
    """The test file at the mirrored path, or those of the table."""
    mirrored = Path("tests") / module.with_name(f"test_{module.name}")
    names = ELSEWHERE.get(module.stem)
    if names is None:
        found = [ROOT / mirrored] if (ROOT / mirrored).exists() else []
    else:
        found = [path for name in names for path in (ROOT / "tests").rglob(f"test_{name}.py")]
    if not found:
        raise SystemExit(f"{module} has no {mirrored}; add it, or name its tests in ELSEWHERE")
    return [str(path.relative_to(ROOT)) for path in found]


def ways_by_place(name: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Line and column of all that can be changed, with the operators and their occurrences."""
    source = (ROOT / name).read_text()
    nodes, notes = list(ast_nodes(get_ast(source))), annotations(source)
    found = defaultdict(list)
    for operator in operator_names():
        kind = get_operator(operator)
        if kind.arguments() or operator.endswith(SAME):
            continue
        made = kind()
        places = (start for node in nodes for start, _ in made.mutation_positions(node))
        for occurrence, start in enumerate(places):
            if not any(first <= start < last for first, last in notes):
                found[start].append((operator, occurrence))
    return found


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the types are annotated: mypy tests these."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    ends = [(n, n.end_lineno or 0, n.end_col_offset or 0) for n in found if n is not None]
    return [((n.lineno, n.col_offset), (line, column)) for n, line, column in ends]


def copy_of_repository(folder: Path) -> Path:
    """Copies the files that git knows or would add."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, out.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def baseline(trees: "SimpleQueue[Path]", tests: list[str]) -> float:
    """Seconds that the tests take of what is not mutated; they have to pass."""
    tree, start = trees.get(), time.monotonic()
    try:
        if run_tests(tree, tests, 600) != 0:
            log = (tree / "log.txt").read_text()
            raise SystemExit(f"{log[-3000:]}\n{tests} fail without a mutant: mend them first")
    finally:
        trees.put(tree)
    return time.monotonic() - start


def outcome(
    trees: "SimpleQueue[Path]", tests: list[str], seconds: float, name: str, way: str, number: int
) -> str:
    """Tests one mutant: caught, survived or equivalent; prints it if it survives."""
    source = (ROOT / name).read_text()
    mutated = mutate_code(source, get_operator(way)(), number)
    lines = source.splitlines(), mutated.splitlines()
    diff = list(difflib.unified_diff(*lines, name, name, n=2, lineterm=""))
    changed = [line for line in diff[2:] if line[0] in "+-"]
    known = yaml.safe_load((ROOT / "tests/equivalent_mutants.yaml").read_text())
    if changed in [[f"-{one['from']}", f"+{one['to']}"] for one in known] or not changed:
        return "equivalent"
    tree = trees.get()
    try:
        (tree / name).write_text(mutated)
        code = run_tests(tree, tests, 60 + 5 * seconds)
        shutil.copy2(ROOT / name, tree / name)
        for compiled in (tree / name).parent.glob(f"__pycache__/{Path(name).stem}.*"):
            compiled.unlink()  # it is found by the second and the size of its source alone
    finally:
        trees.put(tree)
    if code == 0:
        print("\n".join([f"\nsurvived: {way}, {' '.join(tests)}", *diff]), flush=True)
    return "caught" if code else "survived"


def run_tests(tree: Path, tests: list[str], timeout: float) -> int:
    """The exit code of pytest in a process that has the modules of `tree`; -9 if it hangs."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_pytest, args=(tree, tests))
    process.start()
    process.join(timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # what it left behind, too
    process.join()
    return process.exitcode or 0


def _pytest(tree: Path, tests: list[str]) -> None:
    os.setsid()
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    sys.path[:0] = [str(tree)]
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    import pytest

    fast = ["-x", "-q", "-m", "not slow and not cluster", "-p", "no:cacheprovider"]
    code = pytest.main([*fast, f"--basetemp={tree}.tmp", "--hypothesis-seed=0", *tests])
    os._exit(code)


if __name__ == "__main__":
    multiprocessing.get_context("forkserver").set_forkserver_preload(HEAVY)
    raise SystemExit(main())
