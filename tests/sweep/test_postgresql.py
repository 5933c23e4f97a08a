"""A sweep in a database: two processes of their own share the work, and go on after one is killed.

Needs a PostgreSQL server's programs, such as Debian's package postgresql has, and psycopg.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest

from momo_wrap import sweep
from momo_wrap.sweep.results_file import Run
from tests.sweep import shared

pytest.importorskip("psycopg", reason="psycopg is not installed")

USER, NEEDED = "postgres", "MOMO_WRAP_NEEDS_POSTGRESQL"


def program(name: str) -> str:
    """Where one of the server's programs is; Debian has them in no PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which(name) or next(
        (str(folder / name) for folder in reversed(folders) if (folder / name).exists()), None
    )
    if found is None:
        missing = f"PostgreSQL's {name} is not installed"
        if NEEDED in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty server, which listens on a socket alone."""
    initdb, postgres = program("initdb"), program("postgres")
    # It does not run as root, and the path of a socket must be short.
    owner = {"user": USER} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if owner:
            shutil.chown(folder, USER)
        made = [initdb, "-D", str(folder / "data"), "-U", USER, "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **owner)  # type: ignore[call-overload]
        options = ["-D", str(folder / "data"), "-k", str(folder), "-c", "listen_addresses="]
        with (folder / "log").open("w") as log:
            own = subprocess.Popen(  # type: ignore[call-overload]
                [postgres, *options], stdout=log, stderr=log, cwd=folder, **owner
            )
        try:
            deadline = time.monotonic() + 60
            while not (folder / ".s.PGSQL.5432").exists():
                assert own.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"postgresql+psycopg://{USER}@/{USER}?host={quote(name, safe='')}"
        finally:
            own.send_signal(signal.SIGINT)  # a shutdown that ends connections
            own.wait()


@pytest.mark.usefixtures("log")
def test_two_processes_share_the_work_though_one_is_killed(
    server: str, tmp_path: Path, undisturbed: dict[Run, float]
) -> None:
    paths = [tmp_path / name / "sweep.csv" for name in ("one", "other")]
    one, other = (shared.start(path, server, processes=0, together=2) for path in paths)
    while len({line.split()[0] for line in shared.begun()}) < 2:  # both have made the tables
        assert (one.poll(), other.poll()) == (None, None)
        time.sleep(0.05)
    one.kill()
    assert one.wait() == -signal.SIGKILL
    assert other.wait() == 0
    assert shared.losses(sweep.load(paths[1])) == undisturbed
    assert shared.losses(sweep.load(tmp_path / "sweep.csv", server)) == undisturbed
    # The run that was killed has begun twice, and no other.
    assert len(shared.begun()) in (shared.RUNS, shared.RUNS + 1)
    database = optuna.storages.RDBStorage(server)
    study = optuna.load_study(study_name="sweep", storage=database)
    states = study.trials_dataframe()["state"].value_counts()
    database.remove_session()
    database.engine.dispose()
    assert states["COMPLETE"] == shared.RUNS
    assert states.get("FAIL", 0) <= 1
    assert states.get("RUNNING", 0) == 0


@pytest.mark.usefixtures("log")
def test_no_run_is_begun_twice(server: str, tmp_path: Path, undisturbed: dict[Run, float]) -> None:
    paths = [tmp_path / name / "again.csv" for name in ("one", "other")]
    both = [shared.start(path, server, n, 0.01, 2) for path, n in zip(paths, (0, 2), strict=True)]
    assert [own.wait() for own in both] == [0, 0]
    for path in paths:
        assert shared.losses(sweep.load(path)) == undisturbed
    assert len(shared.begun()) == shared.RUNS
    assert len({line.split()[0] for line in shared.begun()}) == 3
    assert sweep.forget(paths[0], server, lr=shared.RATES[0]) == 4
    assert shared.losses(shared.run(paths[0], server)) == undisturbed
    assert len(shared.begun()) == shared.RUNS + 4
