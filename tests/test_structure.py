"""Imports point one way, imports stay light, the public names and the README are what they say."""

import ast
import graphlib
import importlib
import inspect
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import mcscore as mcs
from mcscore import _face

ROOT = Path(mcs.__file__).parent
FLOORS = [  # a room imports from lower floors, or from itself without circles
    {"_foundation"},
    {"schedules", "storage", "parallel"},
    {"jet", "frames", "datasets", "metrics", "plotting"},
    {"mixtures"},
    {"flows"},
    {"generators", "sklearn"},
    {"pipeline", "chunked"},
    {"inference"},
    {"experiments"},
    {"__main__"},
]
OWNERS = {
    "diffrax": {"flows"},
    "flax": {"generators"},
    "optax": {"generators", "pipeline"},  # the pipeline in an annotation only
    "matplotlib": {"plotting"},
    "jinja2": {"experiments"},
    "typer": {"__main__"},
}
FACES = {"mcscore", "mcscore._face"}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def room_of(module):
    room = module.split(".")[1]
    return "_foundation" if room.startswith("_") and room != "__main__" else room


def imported(path):
    """Return the modules that a file imports, names of a face traced to where they are."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole not in MODULES and str(node.module).startswith("mcscore"):
                    value = getattr(sys.modules.get(node.module), alias.name, None)
                    home = getattr(value, "__module__", None)
                    found.add(home if home in MODULES else node.module)
                else:
                    found.add(whole if whole in MODULES else node.module)
    return found


def load_all():
    for name in MODULES:
        if name != "mcscore.__main__":
            importlib.import_module(name)


def test_imports_point_down_and_run_in_no_circle():
    load_all()
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    graph = {}
    for name, path in MODULES.items():
        if name in FACES or path.name == "__init__.py":
            continue
        inner = {m for m in imported(path) if m.startswith("mcscore.")}
        libraries = {m.split(".")[0] for m in imported(path) if m}
        for other in inner:
            own, used = room_of(name), room_of(other)
            assert own == used or floor[own] > floor[used], f"{name} imports {other}"
        for library in libraries & set(OWNERS):
            assert room_of(name) in OWNERS[library], f"{library} in {name}"
        graph[name] = inner - {name}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_rooms_are_small():
    lengths, functions, suppressed = [], [], 0
    for path in MODULES.values():
        text = path.read_text()
        lengths.append(len(text.splitlines()))
        suppressed += len(re.findall(r"# noqa|# type: ignore", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                first = node.body[1 if documented and len(node.body) > 1 else 0]
                functions.append(node.body[-1].end_lineno - first.lineno + 1)
    assert statistics.median(lengths) <= 140 and max(lengths) <= 460
    assert statistics.median(functions) <= 6 and suppressed <= 10
    for folder in [ROOT, *(path for path in ROOT.iterdir() if path.is_dir())]:
        assert len(list(folder.glob("*.py"))) <= 12, folder


def test_fields_and_flow_need_neither_clusters_nor_splines():
    code = "import sys, mcscore.flows; print(*sys.modules)"
    run = [sys.executable, "-W", "error", "-W", "ignore:.*ArviZ:FutureWarning", "-c", code]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert "mcscore.flows.fields" in loaded and "mcscore.mixtures.value" in loaded
    forbidden = r"^(mcscore\..*(cluster|spline|selection)|sklearn)"
    assert not [name for name in loaded if re.search(forbidden, name)]


def test_a_score_stays_in_two_rooms():
    """But for the values that it is given, of mixtures and schedules, and help with arrays."""
    fields = imported(ROOT / "flows/fields.py") | imported(ROOT / "jet/streaming.py")
    rooms = {room_of(name) for name in fields if name.startswith("mcscore.")}
    assert rooms - {"mixtures", "schedules", "parallel", "_foundation"} == {"jet"}


def test_the_public_names():
    rooms = set(_face.ROOMS)
    assert 30 <= len(mcs.__all__) <= 40 and not rooms & set(mcs.__all__)
    assert {name for name in dir(mcs) if not name.startswith("_")} == rooms | set(mcs.__all__)
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    written = {a.name for n in ast.walk(stub) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert written == rooms | set(mcs.__all__)


@pytest.mark.parametrize("name", _face.MOVED)
def test_old_places_still_answer(name):
    with pytest.warns(DeprecationWarning, match=rf"mcscore\.{name} is now mcscore\."):
        assert getattr(mcs, name) is not None


def test_the_oldest_versions_tested_are_those_admitted():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    admitted = project["dependencies"] + [
        r for e in ("plot", "data", "export", "bayes") for r in extras[e]
    ]
    pinned = (ROOT.parent / "tests/oldest.txt").read_text().split()
    pinned = {name: Version(version) for name, version in (line.split("==") for line in pinned)}
    for name, bound in (requirement.split(">=") for requirement in admitted):
        assert pinned[name] == Version(bound), name


@pytest.mark.slow
def test_a_wheel_is_complete(tmp_path):
    """Built, unpacked elsewhere, and used from there with none of this folder on the path."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source / "mcscore", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT.parent / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        archive.extractall(tmp_path / "elsewhere")
    kinds = ("*.py", "*.pyi", "*.html", "py.typed")
    files = {str(p.relative_to(ROOT.parent)) for kind in kinds for p in ROOT.rglob(kind)}
    assert files <= packed and mcs.__version__ in wheel.name
    code = "import mcscore as mcs, jax, mcscore.__main__; print(mcs.__file__)\n"
    code += "print(mcs.mixture(jax.numpy.eye(2), kernel=mcs.Isotropic(0.1)).dimension)"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "elsewhere")}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, check=True, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.splitlines() == [str(tmp_path / "elsewhere/mcscore/__init__.py"), "2"]


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("sklearn", "matplotlib"))
import jax, mcscore as mcs
from pathlib import Path
from mcscore.experiments import demo, reproduce
key = jax.random.key(0)
x = jax.random.normal(key, (50, 2))
small = reproduce.quick(reproduce.default_settings("x"))
tiny = dict(pairs=200, epochs=1, refine=0, network=mcs.MLP(width=8, depth=1))
assert mcs.fit(key, x, **tiny).sample(key, 3).shape == (3, 2)
assert mcs.mixture(x, kernel=mcs.Whitened(0.3)).condition([0], [0.0]).dimension == 1
for call in (
    lambda: mcs.datasets.wine(),
    lambda: mcs.metrics.classifier_accuracy(jax.random.key(0), x, x),
    lambda: mcs.plotting.plot_samples({"x": x}),
    lambda: demo.run(Path("nowhere")),
    lambda: reproduce.run(key, reproduce.Problem("x", x, x), Path("nowhere"), settings=small),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_extra(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    extras = [line.split(" needs ")[1] for line in run.stdout.splitlines()]
    data = "the extra [data]: pip install scikit-learn"
    plot = "the extra [plot]: pip install matplotlib"
    both = "the extra [data,plot]: pip install scikit-learn matplotlib jinja2"
    assert extras == [data, data, plot, both, both]
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    code = (
        "import sys, mcscore; bad = {'matplotlib', 'sklearn', 'pandas', 'torch'} & set(sys.modules);"
        "assert not bad, bad; import jax; assert not jax.config.jax_enable_x64"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


FIT = (
    "key x * condition kernel frame schedule weights groups bounds periodic pairs labelling network "
    "encoder refine optimizer epochs batch_size validation patience ema checkpoint progress mesh"
)
SIGNATURES = {
    "score": "x_t t mixture schedule * condition",
    "denoise": "x_t t mixture schedule * condition",
    "log_density": "x_t t mixture schedule * condition",
    "divergence": "x_t t mixture schedule * condition",
    "velocity": "x_t t mixture schedule * condition",
    "minibatch_score": "key x_t t mixture schedule * batch_size batches",
    "transport": "z mixture schedule * condition clock solver steps stepsize_controller",
    "encode": "x mixture schedule * condition clock solver steps stepsize_controller",
    "generate_pairs": "key mixture schedule n * conditions noise minibatch clock solver steps "
    "stepsize_controller tolerance chunk_size error_sample checkpoint progress mesh",
    "train": "key pairs * network optimizer epochs batch_size validation patience ema encoder "
    "recalibrate checkpoint progress mesh",
    "refine": "key generator mixture pairs * steps batch_size optimizer checkpoint progress",
    "fit": FIT,
    "fit_stages": FIT,
    "mixture": "x * condition kernel weights groups bounds periodic frame key block_rows evaluation",
    "load": "path",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures(name):
    words, starred = [], False
    for parameter in inspect.signature(getattr(mcs, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words, starred = [*words, "*"], True
        words.append("**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    assert " ".join(words) == SIGNATURES[name]


def test_public_names_exist_and_are_documented():
    assert sorted(mcs.__all__) == sorted(set(mcs.__all__))
    for name in mcs.__all__:
        value = getattr(mcs, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            assert ">>>" in inspect.getdoc(value) or name in ("load", "fit_stages"), name


PAGES = (
    "README.md",
    "docs/index.md",
    "docs/own_networks.md",
    "docs/guide.md",
    "docs/tables.md",
    "docs/conditions.md",
    "docs/scaling.md",
    "docs/which_model.md",
    "docs/bayes.md",
)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_pages_runs(page, tmp_path):
    """In a process of its own, in float32 and unchecked; the front page with XLA's own settings too."""
    readme = (ROOT.parent / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks
    quick = {"10_000": "50", "100_000": "500", "50_000": "500", "key, 5000": "key, 1000"}
    quick |= {"steps=2_000": "steps=100", "20_000": "500", "epochs=20": "epochs=2"}
    law = "kernel=mcs.Local(0.6, clusters=2), frame=mcs.Gaussianize()"  # Auto has tests of its own
    tiny = "epochs=2, network=mcs.MLP(width=8, depth=1)"
    quick |= {
        "kernel=mcs.Auto()": law,
        "fit(fit_key, x)": f"fit(fit_key, x, {law}, pairs=500, {tiny})",
    }
    quick |= {"key, x, pairs=5_000, epochs=5": f"key, x, {law}, pairs=300, {tiny}"}
    quick |= {"pairs, epochs=60": f"pairs, {tiny}", "pairs=5_000, epochs=10": f"pairs=300, {tiny}"}
    quick |= {"key, x, pairs=5_000": f"key, x, {law}, pairs=300", "n=5_000": "n=300"}
    quick |= {"mcs.Auto(most_rows=4_000)": "mcs.Local(0.6, clusters=2)", "epochs=10": "epochs=2"}
    quick |= {"width=32, depth=3": "width=8, depth=1", "2_000": "200", "draws=50": "draws=10"}
    quick |= {"fit(key, x, condition=c)": f"fit(key, x, condition=c, {law}, pairs=300, {tiny})"}
    quick |= {
        "fit_key, x_of_c, condition=c": f"fit_key, x_of_c, condition=c, {law}, pairs=300, {tiny}"
    }
    quick |= {"np.stack(paths, 1))": f"np.stack(paths, 1), {law}, pairs=300, {tiny})"}
    quick |= {"num_warmup=500, num_samples=1000": "num_warmup=20, num_samples=20"}
    code = "\n".join(blocks)
    for long, short in quick.items():
        code = code.replace(long, short)
    run = [sys.executable, "-W", "error", "-W", "ignore:.*ArviZ:FutureWarning", "-c", code]
    flags = {"XLA_FLAGS": ""} if page == "docs/index.md" else {}
    env = os.environ | flags
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.once
def test_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    built = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = (tmp_path / "reference").glob("*/index.html")
    reference = "".join(page.read_text() for page in pages)
    missing = [name for name in mcs.__all__ if f".{name}" not in reference]
    assert not missing
    assert reference.count('class="gp">&gt;&gt;&gt;') > 50  # examples are shown as code
    formulas = (tmp_path / "mathematics/index.html").read_text()
    framed = formulas.count('<div class="formula"><math')  # a phone scrolls them, not the page
    assert framed == formulas.count('display="block"') > 5


def test_nothing_names_this_workplace():
    words = ["/wo" + "rk/", ".libra" + "ry", "pypi" + ".org"]
    for path in ROOT.parent.rglob("*"):
        if path.suffix in {".py", ".md", ".toml", ".cff", ".ipynb"} and ".venv" not in path.parts:
            text = path.read_text(errors="ignore")
            assert not any(word in text for word in words), path
