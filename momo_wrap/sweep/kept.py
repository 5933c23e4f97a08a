"""Load and remove the saved results and curves of a sweep."""

from __future__ import annotations

from os import PathLike
from typing import Any

import pandas as pd

from momo_wrap.sweep.results_file import Run, table, write
from momo_wrap.sweep.storage import Trials


def load(
    path: str | PathLike[str], storage: str | PathLike[str] | None = None, **selection: Any
) -> pd.DataFrame:
    """Load the results of a sweep, even while it runs or after it was killed.

    Args:
        path: The CSV file that was given to `run`.
        storage: The storage that was given to `run`.
        **selection: Columns of the results and the value that they must have, or a list of
            possible values: `optimizer="AdamW", seed=[0, 1]`.

    Returns:
        One row per run. Further return values of the runs, and the settings, are separate columns,
        missing if a run has none. `status` is "ok", "diverged" or
        "error", with the reason in `message`, and in `traceback`, which the storage alone keeps.

    Raises:
        FileNotFoundError: There is no such file, nor a storage.
        ValueError: It is no file of results; or a name in `selection` is no column.
    """
    trials = Trials(path, storage)
    if not trials.path.exists() and not trials.exist():
        raise FileNotFoundError(f"There is no {trials.path}, and no {trials.where} beside it.")
    results = table(trials.rows().values())
    for name, value in selection.items():
        if name not in results.columns:
            raise ValueError(f"The results have no column {name!r}, only {list(results.columns)}.")
        values = list(value) if isinstance(value, (list, tuple, set, range)) else [value]
        results = results[results[name].isin(values)]
    return results


def forget(
    path: str | PathLike[str], storage: str | PathLike[str] | None = None, **selection: Any
) -> int:
    """Forget the results of some runs, so that `run` begins them again.

    Args:
        path: The CSV file that was given to `run`.
        storage: The storage that was given to `run`.
        **selection: Which, as for `load`: `status="error"`.

    Returns:
        How many were forgotten.

    Raises:
        FileNotFoundError: There is no such file, nor a storage.
        ValueError: It is no file of results; or a name in `selection` is no column.
    """
    chosen = load(path, storage, **selection)
    runs = {Run(**row) for row in chosen[list(Run._fields)].to_dict("records")}
    trials = Trials(path, storage)
    rows = trials.rows()
    if trials.exist():
        trials.forget(runs & trials.results().keys())
    write(trials.path, {run: row for run, row in rows.items() if run not in runs})
    return len(runs)


def load_curves(
    path: str | PathLike[str], storage: str | PathLike[str] | None = None, **selection: Any
) -> dict[str, pd.DataFrame]:
    """Load the curves of a sweep that returned some.

    Args:
        path: The CSV file that was given to `run`; the curves are in a folder beside it.
        storage: The storage that was given to `run`.
        **selection: Which, as for `load`: `optimizer="AdamW + MoMo", seed=0`.

    Returns:
        The curves by the name of the run, in which those of `task`, `optimizer`, `lr` and `seed`
        are left out that are the same for all. Runs that have no curve are left out.

    Raises:
        FileNotFoundError: There is no such file; or a curve is on the machine that trained its run.
        ValueError: It is no file of results; or a name in `selection` is no column.
    """
    results = load(path, storage, **selection)
    results = results[results["curve"] != ""].sort_values(list(Run._fields))
    forms = {"task": "{}", "optimizer": "{}", "lr": "lr {:g}", "seed": "seed {}"}
    varying = [name for name in forms if results[name].nunique() > 1] or forms
    folder = Trials(path, storage).path.parent
    return {
        ", ".join(forms[name].format(row[name]) for name in varying): pd.read_csv(
            folder / row["curve"]
        )
        for row in results.to_dict("records")
    }
