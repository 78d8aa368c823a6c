"""Imports point one way, imports stay light, the public names and the README are what they say."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mcscore as mcs

ROOT = Path(mcs.__file__).parent
ORDER = [  # a file may import from files before it only
    "schedules", "files", "extras", "fused", "shown", "posterior", "jet", "solvers", "splines", "columns",
    "ties", "frames", "metrics", "uci", "download", "datasets", "plotting", "tables", "clustering", "draws",
    "conditioning", "calibration", "moments", "packing", "covariances", "kernels", "selection", "report",
    "mixtures", "fields", "flow", "pairs", "density", "networks", "generator", "training", "refinement",
    "pipeline", "published", "comparison", "judging", "reproduce", "demo", "cli", "sklearn",
]  # fmt: skip
ALONE = {
    "schedules", "files", "extras", "fused", "shown", "solvers", "splines", "columns", "metrics", "uci",
    "plotting", "tables", "clustering", "density", "networks",
}  # fmt: skip
OWNERS = {
    "diffrax": {"solvers", "flow", "pairs", "published"},
    "flax": {"networks", "generator"},
    "optax": {"training", "refinement", "published"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    files = {path.stem: path for path in ROOT.glob("*.py")}
    assert set(files) - {"__init__", "__main__"} == set(ORDER)
    for name in ORDER:
        inner = {m.split(".")[1] for m in imported(files[name]) if m.startswith("mcscore.")}
        inner |= {
            m.split(".")[1] for m in imported(files[name]) if m.startswith("mcscore.mcscore.")
        }
        assert all(ORDER.index(other) < ORDER.index(name) for other in inner & set(ORDER)), name
        if name in ALONE:
            assert not inner - {"extras"}, name
        if name == "generator":
            assert not inner & {"flow", "pairs", "training"}
        for library, owners in OWNERS.items():
            uses = any(m.split(".")[0] == library for m in imported(files[name]))
            assert not uses or name in owners, f"{library} in {name}"


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("sklearn", "matplotlib"))
import jax, mcscore as mcs
from pathlib import Path
from mcscore import demo, reproduce
key = jax.random.key(0)
x = jax.random.normal(key, (50, 2))
small = reproduce.quick(reproduce.default_settings("x"))
assert mcs.mixture(x, kernel=mcs.Isotropic(0.3)).sample(key, 3).shape == (3, 2)
for call in (
    lambda: mcs.fit(key, x),
    lambda: mcs.mixture(x, kernel=mcs.Whitened(0.3)),
    lambda: mcs.datasets.wine(),
    lambda: mcs.metrics.classifier_accuracy(0, x, x),
    lambda: mcs.plotting.plot_samples({"x": x}),
    lambda: demo.run(Path("nowhere")),
    lambda: reproduce.run(reproduce.Problem("x", x, x), Path("nowhere"), settings=small),
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
    data, plot = "scikit-learn: pip install mcscore[data]", "matplotlib: pip install mcscore[plot]"
    both = "scikit-learn and matplotlib: pip install mcscore[data,plot]"
    assert extras == [data, data, data, data, plot, both, both]
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    code = (
        "import sys, mcscore; bad = {'matplotlib', 'sklearn', 'pandas', 'torch'} & set(sys.modules);"
        "assert not bad, bad; import jax; assert not jax.config.jax_enable_x64"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


SIGNATURES = {
    "score": "x_t t mixture schedule",
    "denoise": "x_t t mixture schedule",
    "log_density": "x_t t mixture schedule",
    "divergence": "x_t t mixture schedule",
    "velocity": "x_t t mixture schedule",
    "minibatch_score": "key x_t t mixture schedule * batch_size batches",
    "transport": "z mixture schedule * clock solver steps stepsize_controller",
    "encode": "x mixture schedule * clock solver steps stepsize_controller",
    "generate_pairs": "key mixture schedule n * noise minibatch clock solver steps stepsize_controller "
    "tolerance chunk_size error_sample checkpoint progress",
    "train": "key pairs * network optimizer epochs batch_size validation patience ema encoder progress",
    "refine": "key generator mixture pairs * steps batch_size optimizer progress",
    "fit": "key x **",
    "mixture": "x * kernel weights frame block_rows",
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
            assert ">>>" in inspect.getdoc(value) or name in ("load", "solve_flow", "fit_stages"), (
                name
            )


PAGES = ("README.md", "docs/index.md", "docs/own_networks.md", "docs/guide.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_pages_runs(page, tmp_path):
    """In a process of its own, in float32 and unchecked; the README with XLA's own settings too."""
    readme = (ROOT.parent / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks
    quick = {"10_000": "50", "100_000": "500", "50_000": "500", "key, 5000": "key, 1000"}
    quick |= {"steps=2_000": "steps=100", "20_000": "500", "epochs=20": "epochs=2"}
    law = "kernel=mcs.Local(0.6, blocks=2), frame=mcs.Gaussianize()"  # Auto has tests of its own
    tiny = "epochs=2, network=mcs.MLP(width=8, depth=1)"
    quick |= {"kernel=mcs.Auto()": law, "fit(key, x)": f"fit(key, x, {law}, pairs=500, {tiny})"}
    quick |= {"key, x, pairs=5_000, epochs=5": f"key, x, {law}, pairs=300, {tiny}"}
    quick |= {"pairs, epochs=60": f"pairs, {tiny}", "pairs=5_000, epochs=10": f"pairs=300, {tiny}"}
    quick |= {"key, x, pairs=5_000": f"key, x, {law}, pairs=300", "n=5_000": "n=300"}
    quick |= {"mcs.Auto(most_rows=4_000)": "mcs.Local(0.6, blocks=2)", "epochs=10": "epochs=2"}
    quick |= {"width=32, depth=3": "width=8, depth=1"}
    code = "\n".join(blocks)
    for long, short in quick.items():
        code = code.replace(long, short)
    run = [sys.executable, "-W", "error", "-c", code]
    flags = {"XLA_FLAGS": ""} if page == "README.md" else {}
    env = os.environ | flags
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    built = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference/index.html").read_text()
    missing = [
        name
        for name in mcs.__all__
        if name not in ("datasets", "metrics", "plotting") and f".{name}" not in reference
    ]
    assert not missing
    assert reference.count('class="gp">&gt;&gt;&gt;') > 50  # examples are shown as code


def test_nothing_names_this_workplace():
    words = ["/wo" + "rk/", ".libra" + "ry", "pypi" + ".org"]
    for path in ROOT.parent.rglob("*"):
        if path.suffix in {".py", ".md", ".toml", ".cff", ".ipynb"} and ".venv" not in path.parts:
            text = path.read_text(errors="ignore")
            assert not any(word in text for word in words), path
