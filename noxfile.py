"""Sessions for contributors: `nox` runs the default ones, `nox -s NAME` another."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"

# Without this first, packages that depend on torch bring a build with several GB of CUDA libraries.
TORCH = "torch==2.13.0"


def _install(session: nox.Session, *extras: str) -> None:
    session.install(TORCH)
    session.install("-e", f".[{','.join(extras)}]")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on all cores; arguments go to pytest, such as -n0 for one process."""
    _install(session, "test", "examples", "integrations")
    # Its optimizers alone: torchvision, which the rest of it needs, would bring another torch.
    session.install("--no-deps", "timm")
    session.run("pytest", *session.posargs)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session(default=False)
def frameworks(session: nox.Session) -> None:
    """Run the tests and recipes of all frameworks; `tests` skips those that it lacks."""
    session.install(TORCH)
    session.install(TORCH, "-e", ".[test,frameworks]")  # named again, so that it stays
    # What fastai needs without torchvision and spacy, which nothing here does.
    session.install("fastcore", "fastprogress<1.1", "plum-dispatch<2.10", "requests")
    session.install("--no-deps", "fastai>=2.8.12", "fastdownload", "fasttransform", "timm")
    session.run("pytest", "tests/integrations", "-m", "slow or not slow", *session.posargs)


@nox.session(default=False)
@nox.parametrize(
    "torch",
    [
        nox.param("2.4.1", id="oldest"),
        nox.param("2.8.0", id="middle"),
        nox.param("2.14.1", id="newest"),
    ],
)
def releases(session: nox.Session, torch: str) -> None:
    """Run the default tests on a release of torch: `nox -s "releases(oldest)"`."""
    session.run("python", "-m", "tests.torch_without_cuda", torch)
    session.install("-e", ".[test]")
    session.install("--no-deps", "timm")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def triton(session: nox.Session) -> None:
    """Run the kernels of GPUs on the CPU, by Triton's interpreter."""
    _install(session, "test")
    # Torch for CPUs does not ask for it.
    session.install("--no-deps", "triton==3.7.1")
    session.run("pytest", "-m", "slow or not slow", "tests/fast/test_triton.py", *session.posargs)


@nox.session(default=False)
def postgresql(session: nox.Session) -> None:
    """Run sweeps in a database; needs PostgreSQL's server, such as Debian's package postgresql."""
    _install(session, "test")
    session.install("psycopg[binary]>=3.2")
    where = "tests/sweep/test_postgresql.py"
    session.run("pytest", "-n0", where, *session.posargs, env={"MOMO_WRAP_NEEDS_POSTGRESQL": "1"})


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly."""
    _install(session, "dev")
    session.run("mypy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting."""
    session.install("ruff>=0.12")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in docs/_build/html; a warning is an error."""
    _install(session, "docs", "test")
    session.run("pytest", "-n0", "-m", "slow or not slow", "tests/test_site.py")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "docs/_build/html")


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Look at every page of the built site; needs Chromium, such as Debian's package chromium."""
    session.install("playwright")
    session.run("python", "-m", "docs.check_site", "docs/_build/html", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the packages, check them, and try the wheel in an environment of its own."""
    session.install("build", "cffconvert", "check-wheel-contents", "twine")
    session.run("cffconvert", "--validate", "--infile", "CITATION.cff")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"))
    wheel, source = (next((folder / "dist").glob(name)) for name in ("*.whl", "*.tar.gz"))
    session.run("twine", "check", "--strict", str(wheel), str(source))
    session.run("check-wheel-contents", str(wheel))
    session.run("python", "-m", "venv", "--clear", str(folder / "clean"))
    python = str(folder / "clean" / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", TORCH, str(wheel), external=True)
    session.run(python, "-I", "tests/smoke.py", external=True)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples; each asserts its claim."""
    _install(session, "examples", "integrations")
    session.install("schedulefree>=1.4")
    folder = session.create_tmp()
    session.run("python", "examples/quickstart.py", "--output", f"{folder}/quickstart")
    for name in ("plain", "accumulation_amp", "lightning", "accelerate", "hf_trainer"):
        session.run("python", f"examples/train_{name}.py")
    for name in ("ddp", "fsdp2"):
        session.run("torchrun", "--standalone", "--nproc-per-node=2", f"examples/train_{name}.py")
    session.run("python", "examples/lr_sweep.py", "--output", f"{folder}/lr_sweep")
    for name in ("custom_adapter", "custom_rule", "averaged_iterates", "distillation"):
        session.run("python", f"examples/{name}.py")


@nox.session(default=False)
def evidence(session: nox.Session) -> None:
    """Make a part of the evidence and of the costs anew, which takes ten minutes."""
    _install(session, "evidence")
    session.run("python", "-m", "docs.quickstart.seeds")  # the results are there already
    sweeps = ("-m", "docs.evidence.sweeps", "--task", "tumours, logistic", "--method", "AdamW")
    session.run("python", *sweeps, "--folder", session.create_tmp() + "/evidence")
    session.run("python", "-m", "docs.performance.step_cost", "--check")
