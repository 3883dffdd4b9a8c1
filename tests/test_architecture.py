"""The rules of the house, read off the source: who may import whom, who owns which library, where loops over time live.

No private loop. Integrating a path in time happens in the core's sampler, which alone counts network calls, keeps
the memory of a run and can resume. A loop that carries a state from one turn to the next is a `for` or `while`
statement (a comprehension cannot carry one), so outside of `LOOPS` no such statement may, in its body,
  * call the network: anything named `denoiser`, `network`, `backbone` or `model`, or
  * move a state: `.posterior(...)`, `.retract(...)`, `.apply(...)` or `.corrupt(...)`, if the loop is a `while`, or
    runs over something called times, steps, grid, schedule or the like, or binds the result to a name that the
    arguments use (x = path.posterior(x, ...)),
  * or march under any other name: call something with a state and a time of the loop and let the result flow into that
    state again (v = predict(x, t); x = x - v / n).
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "scidiff").rglob("*.py"))

RANK = {"core": 0, "nn": 1, "store": 1, "domains": 2, "training": 3, "evaluation": 3, "config": 3, "api": 4,
        "testing": 4, "cli": 5, "__main__": 6}

OWNERS = {
    "hydra": ("config.py",), "omegaconf": ("config.py",), "hydra_plugins": (),
    "lightning": ("training/",), "pytorch_lightning": (), "tensorboard": ("training/",),
    "typer": ("cli/",), "click": (), "rich": ("cli/",),
    "rdkit": ("domains/molecule/",), "fcd_torch": ("domains/molecule/",), "fcd": ("domains/molecule/",),
    "networkx": ("domains/graph/",),
    "pymatgen": ("domains/crystal/",), "ase": ("domains/crystal/",), "spglib": ("domains/crystal/",),
    "smact": ("domains/crystal/",),
    "monai": ("domains/medical/",), "nibabel": ("domains/medical/",), "pydicom": ("domains/medical/",),
    "xarray": ("domains/pde/",), "h5py": ("domains/pde/",), "h5netcdf": ("domains/pde/",), "zarr": ("domains/pde/",),
    "pandas": (), "jax": (), "exponax": (),
    "e3nn": ("nn/",), "torch_geometric": ("nn/", "domains/graph/"),
    "jinja2": ("evaluation/",), "huggingface_hub": ("store/",), "pooch": ("store/",), "platformdirs": ("store/",),
    "diffusers": (), "azula": (), "k_diffusion": (), "deepinv": (), "flow_matching": (),
}
AT_MODULE_LEVEL = {"hydra": "config.py", "omegaconf": "config.py", "lightning": "training/",
                   "typer": ("cli/app.py", "cli/flags.py"), "platformdirs": "store/"}
LOOPS = ("core/sampler.py", "core/procedure/", "domains/pde/equations/", "domains/pde/rollout.py",
         "domains/pde/objectives.py")
FORBIDDEN = {"utils", "util", "common", "misc", "helpers", "helper", "base_model", "globals", "v2"}
NETWORKS = {"denoiser", "network", "backbone", "model"}
TIMES = re.compile(r"^(ts|t)$|time|step|grid|schedule|sigma")
MOVES = {"posterior", "retract", "apply", "corrupt"}
CLOCK = re.compile(r"^(t|s|ts|time|sigma|when|now|then)$")
PLAIN = {*dir(builtins), "torch", "math", "F"}  # calls of these, or of what they hold, are arithmetic


def place(file: Path) -> str:
    return file.relative_to(ROOT / "scidiff").as_posix()


def imports(file: Path, typing_too: bool = False):
    """(module, line, at module level) of every import; those for type checkers only on demand."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = ("scidiff/" + place(file)).split("/")[:-1]

    def walk(node, level):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test) and not typing_too:
                for other in child.orelse:
                    yield from walk(other, level)
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, level) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module) if part)
                yield module, child.lineno, level
                if module in ("scidiff", "scidiff.domains"):
                    yield from ((f"{module}.{alias.name}", child.lineno, level) for alias in child.names)
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, level and not inner)

    yield from walk(tree, True)


def test_imports_point_downwards():
    wrong = []
    for file in SOURCES:
        here = place(file)
        if here == "__init__.py":  # the facade names things of every layer, lazily
            continue
        part = here.split("/")[0].removesuffix(".py")
        assert part in RANK, f"{here} belongs to no layer"
        for module, line, _ in imports(file, typing_too=True):
            if not module.startswith("scidiff."):
                continue
            other = module.split(".")[1]
            if other in RANK and other != part and RANK[other] >= RANK[part]:
                wrong.append(f"{here}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_domains_are_strangers_to_each_other():
    wrong = []
    for file in SOURCES:
        parts = place(file).split("/")
        inside = parts[1] if parts[0] == "domains" and len(parts) > 2 else None
        for module, line, _ in imports(file, typing_too=True):
            words = module.split(".")
            concrete = words[:2] == ["scidiff", "domains"] and (ROOT / "/".join(words[:3])).is_dir() and words[2:]
            if not concrete:
                continue
            if words[2] != inside:
                wrong.append(f"{place(file)}:{line} imports the concrete domain {module}")
    assert not wrong, "\n".join(wrong)


def test_core_needs_torch_and_the_standard_library_alone():
    wrong = []
    for file in SOURCES:
        if not place(file).startswith("core/"):
            continue
        for module, line, _ in imports(file):
            top = module.split(".")[0]
            allowed = top in sys.stdlib_module_names or top == "torch" or module.startswith("scidiff.core")
            if not allowed and not (top == "scipy" and place(file) == "core/coupling.py"):
                wrong.append(f"{place(file)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_each_heavy_library_has_one_owner():
    wrong = []
    for file in SOURCES:
        here = place(file)
        for module, line, top_level in imports(file):
            library = module.split(".")[0]
            if library == "matplotlib":
                parts = here.split("/")
                owned = here.startswith("evaluation/report") or (parts[0] == "domains" and parts[-1] == "view.py")
                owned = owned and not top_level
            else:
                owned = library not in OWNERS or here.startswith(OWNERS[library])
            if not owned:
                wrong.append(f"{here}:{line} imports {module}, which it does not own")
            elif top_level and library in OWNERS and not here.startswith(AT_MODULE_LEVEL.get(library, "-")):
                wrong.append(f"{here}:{line} imports {module} at module level; import it inside the function")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_imports_torch_only_to_examine_the_machine():
    command_line = [file for file in SOURCES if place(file).startswith("cli/")]
    users = {place(f) for f in command_line if any(module.split(".")[0] == "torch" for module, *_ in imports(f))}
    assert users <= {"cli/doctor.py"}


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def root_name(node: ast.expr) -> str:
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Starred)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def targets(node: ast.stmt) -> set[str]:
    """Root names that a statement binds."""
    if not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        return set()
    given = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [part for t in given for part in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
    return {root_name(part) for part in flat} - {"_", ""}


def private_loops(tree: ast.AST):
    """(line, what) of every statement loop that marches a state by itself."""
    for loop in (n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While))):
        over = [last_name(n) for n in ast.walk(loop.iter)] if isinstance(loop, ast.For) else ["times"]
        in_time = any(TIMES.search(name) for name in over)
        for node in (n for statement in loop.body for n in ast.walk(statement)):
            if not isinstance(node, (ast.stmt, ast.Call)):
                continue
            if isinstance(node, ast.Call) and last_name(node.func) in NETWORKS:
                yield node.lineno, f"calls {last_name(node.func)}"
            elif isinstance(node, ast.Call) and last_name(node.func) in MOVES and in_time:
                yield node.lineno, f"calls {last_name(node.func)} for one time after another"
            elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
                call = node.value
                used = {root_name(n) for a in call.args for n in ast.walk(a) if isinstance(n, ast.expr)}
                if last_name(call.func) in MOVES and not in_time and targets(node) & used:
                    yield node.lineno, f"moves a state by {last_name(call.func)}"


def names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def bindings(nodes: list[ast.AST]):
    """(root names, expression) of every binding; a, b = x, y are two."""
    for n in nodes:
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple) and isinstance(n.targets[0], ast.Tuple):
            yield from (({root_name(t)}, v) for t, v in zip(n.targets[0].elts, n.value.elts, strict=False))
        elif isinstance(n, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and n.value is not None:
            yield targets(n), n.value


def marches(tree: ast.AST):
    """(line, what) of every call with a state and a time of its loop whose result flows into that state again."""
    for loop in (n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While))):
        inner = [n for statement in loop.body for n in ast.walk(statement)]
        steps = list(bindings(inner))
        clock = {name for bound, _ in steps for name in bound if CLOCK.search(name)}
        fresh: set[str] = set()
        if isinstance(loop, ast.For):
            fresh = names(loop.target)
            over = {last_name(n) for n in ast.walk(loop.iter)}
            counted = "range" in over or any(TIMES.search(name) for name in over)
            clock |= {name for name in names(loop.target) if counted or CLOCK.search(name)}
        for call in (n for n in inner if isinstance(n, ast.Call) and len(n.args) > 1):
            used = {name for a in call.args for name in names(a)}
            if root_name(call.func) in PLAIN or not used & clock:
                continue
            flow: set[str] = set()
            for _ in steps:
                flow |= {name for bound, value in steps for name in bound
                         if names(value) & flow or any(part is call for part in ast.walk(value))}
            if carried := sorted((used & flow) - clock - fresh):
                yield call.lineno, f"carries {carried[0]} through {last_name(call.func)} from time to time"


def test_no_private_loop():
    wrong = []
    for file in SOURCES:
        if not place(file).startswith(LOOPS):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            wrong += [f"{place(file)}:{line} {what} inside a loop"
                      for line, what in [*private_loops(tree), *marches(tree)]]
    assert not wrong, "Integrating in time belongs to core/sampler.py:\n" + "\n".join(wrong)


@pytest.mark.parametrize("text, found", [
    ("for t in ts:\n    d = denoiser(x, t)\n", 1),
    ("while t > 0:\n    x = path.posterior(x, d, t, s)\n", 1),
    ("for i in r:\n    if i:\n        x['a'] = space.retract(x['a'], v)\n", 1),
    ("for t, s in pairwise(grid):\n    y = path.posterior(x, d, t, s)\n    x = y\n", 1),
    ("out = {n: p.posterior(x[n], d) for n, p in paths}\n", 0),
    ("for n in names:\n    out[n] = path.corrupt(state[n], t)\n", 0),
    ("d = denoiser(x, t)\n", 0),
])
def test_the_loop_rule_sees_what_it_should(text, found):
    assert len(list(private_loops(ast.parse(text)))) == found


@pytest.mark.parametrize("text, found", [
    ("for t, s in pairwise(times):\n    x = x + (s - t) * net(x, t)\n", 1),
    ("for i in range(n):\n    t = 1 - i / n\n    v = predict(x, t)\n    x = x - v / n\n", 1),
    ("for i in range(n):\n    x -= self.denoiser.forward(x, i / n)['x'].velocity / n\n", 1),
    ("while t > 0:\n    state = self._step(state, t)\n    t = t - h\n", 1),
    ("for t in grid:\n    p = f(state, t, ctx)\n    state = {n: state[n] + p[n] for n in state}\n", 1),
    ("for name, c in spec.items():\n    out[name] = c.path.corrupt(state[name], t)\n", 0),
    ("for t, s in pairwise(times):\n    rows.append(row(name, t, s))\n", 0),
    ("for t in times:\n    total = max(total, t)\n", 0),
])
def test_a_march_is_seen_whatever_the_network_is_called(text, found):
    assert len(list(marches(ast.parse(text)))) == found


def test_files_are_short_and_named_for_what_they_hold():
    wrong = []
    others = [file for folder in ("tests", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    for file in [*SOURCES, *others]:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            wrong.append(f"{file.relative_to(ROOT)} has {lines} lines")
        if {part.removesuffix(".py") for part in file.relative_to(ROOT).parts} & FORBIDDEN:
            wrong.append(f"{file.relative_to(ROOT)} is a drawer")
    assert not wrong, "\n".join(wrong)


def test_no_star_imports_bare_excepts_or_promises():
    wrong = []
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                wrong.append(f"{place(file)}:{node.lineno} imports *")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{place(file)}:{node.lineno} has a bare except")
        wrong += [f"{place(file)}:{i} {word}" for i, line in enumerate(text.splitlines(), 1)
                  for word in ("TODO", "FIXME", "XXX") if word in line]
    assert not wrong, "\n".join(wrong)


def test_datasets_hold_no_python():
    assert not list((ROOT / "datasets").rglob("*.py"))


HEAVY = sorted({*OWNERS, "torch", "numpy", "scipy", "matplotlib", "pandas"} - {"typer", "rich", "click"})


@pytest.mark.parametrize("what", ["import scidiff", "from scidiff.cli.app import run; run(['--help'])"])
def test_starting_loads_nothing_heavy_and_is_quick(what, root):
    """CPU time of the process, the best of three: what a loaded machine cannot spoil."""
    program = (
        f"{what}\nimport sys, resource, json\nspent = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"loaded = [m for m in {[*HEAVY, *(['typer'] if what == 'import scidiff' else [])]!r} if m in sys.modules]\n"
        "print('\\n' + json.dumps([loaded, spent.ru_utime + spent.ru_stime]))"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
        loaded, seconds = json.loads(done.stdout.splitlines()[-1])
        assert loaded == []
        times.append(seconds)
    assert min(times) < 0.5
