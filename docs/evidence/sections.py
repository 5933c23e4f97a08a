"""The generated sections of the page, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from docs.evidence.comparing import (
    ONE_SETTING,
    OneSetting,
    at_one_setting,
    at_their_bests,
    in_hindsight,
    is_near,
    narrower,
    shortfall,
    trained,
    widest,
)
from docs.evidence.measures import LEAST_PROGRESS, RULES, STRICT, WIDE, Comparison, wrapped_by
from docs.evidence.methods import BARE, METHODS, TUNERS
from docs.evidence.targets import NOISE, targets
from docs.evidence.tasks import DESIGN, HELD_OUT, SCORED, TASKS

Comparisons = Mapping[str, Comparison]
Row = Sequence[str]
NONE = "—"
FORMS = ("", *(f" + {rule}" for rule in RULES))
FAMILIES = [*(base + form for base in BARE for form in FORMS), *TUNERS]


def table(head: Row, rows: Iterable[Row], texts: int = 1) -> str:
    """Return a table in Markdown.

    Args:
        head: The titles of the columns.
        rows: The cells.
        texts: How many columns, from the left, hold text; the others are set to the right.
    """
    rule = "|".join(["---"] * texts + ["--:"] * (len(head) - texts))
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def runs(comparisons: Comparisons) -> str:
    """Count the runs, and name the methods and tasks that are omitted because runs are missing."""
    counted = [
        f"- {name}: {c.runs:,} runs on {len(c.tasks)} of {len(TASKS)} tasks; {c.failed} failed"
        for name, c in comparisons.items()
    ]
    text = "\n".join(counted)
    if not any(missing for c in comparisons.values() for missing in c.missing.values()):
        return text
    return f"{text}\n\nLeft out, since runs are missing:\n\n{_left_out(comparisons)}"


def _left_out(comparisons: Comparisons) -> str:
    tasks: dict[tuple[str, str], list[str]] = {}
    for name, c in comparisons.items():
        for task, missing in c.missing.items():
            if missing:
                tasks.setdefault((name, _names(missing)), []).append(task)
    return "\n".join(f"- {name}, {who}: {'; '.join(where)}" for (name, who), where in tasks.items())


def never_trains(comparisons: Comparisons) -> str:
    """List the bases that do not train on a task at any learning rate, bare."""
    lines = [
        f"- {name}, {base} on {task}: {100 * progress:.0f} % of the way; "
        f"best {_forms(c, base, task)}; best of all bases {c.best_bare(task):.3g}"
        for name, c in comparisons.items()
        for (base, task), progress in c.progress.items()
        if not c.trains(base, task)
    ]
    least = [p for c in comparisons.values() for p in c.progress.values() if p > LEAST_PROGRESS]
    text = "\n".join(lines) or "All bases train on all tasks."
    others = f"\n\nThe smallest of all other pairs: {100 * min(least):.0f} %." if least else ""
    return text + others


def _forms(c: Comparison, base: str, task: str) -> str:
    forms = {base: "bare", **{f"{base} + {rule}": f"with {rule}" for rule in RULES}}
    present = {method: form for method, form in forms.items() if (method, task) in c.cells}
    return ", ".join(f"{form} {c.cells[m, task].best:.3g}" for m, form in present.items())


def against_targets(comparisons: Comparisons) -> str:
    """Compare the measurements with the targets."""
    rows = []
    for target in targets():
        cells = []
        for verdict in target.verdicts(comparisons).values():
            word = {True: "met: ", False: "**missed**: ", None: ""}[verdict.met]
            cells.append(word + verdict.measured)
        rows.append([target.claim, target.subject, *cells])
    return table(["target", "of", *comparisons], rows, texts=2 + len(comparisons))


def tolerances(comparisons: Comparisons) -> str:
    """Give the mean tolerance of each method, and where it is narrower than the bare base's."""
    return _by_schedule(comparisons, _tolerances)


def _tolerances(c: Comparison) -> str:
    head = ["method", "tasks", "mean", "design", "held out", "narrower", f"mean, {STRICT}"]
    head += ["mean, own", "narrower, own"]
    rows, lost = [], []
    for method in families(c):
        tasks, is_wrapped = c.common([method]), " + " in method
        parts = [
            c.mean_width(method, c.common([method], part)) for part in (TASKS, DESIGN, HELD_OUT)
        ]
        found = narrower(c, method) if is_wrapped else []
        own = narrower(c, method, "own") if is_wrapped else []
        counts = [str(len(tasks_lost)) if is_wrapped else "" for tasks_lost in (found, own)]
        strict = _mean(c.mean_width(method, tasks, "strict"))
        by_own = _mean(c.mean_width(method, trained(c, method), "own"))
        means = [_mean(part) for part in parts]
        rows.append([method, str(len(tasks)), *means, counts[0], strict, by_own, counts[1]])
        where = [f"{n.task} ({_decades(n.decades)}, bare {_decades(n.bare)})" for n in found]
        lost += [f"- {method}: {'; '.join(where)}"] if where else []
    return _with_list(table(head, rows), "Narrower than bare", lost)


def against_tuners(comparisons: Comparisons) -> str:
    """Count on how many tasks wrapped AdamW tolerates more than the tuners, as much, and less."""
    against = {"all of them": list(TUNERS), **{tuner: [tuner] for tuner in TUNERS}}
    rows, lost = [], []
    for name, c in comparisons.items():
        for method in [f"AdamW + {rule}" for rule in RULES]:
            if not c.common([method, *TUNERS]):
                continue
            found = [widest(c, method, rivals) for rivals in against.values()]
            cells = [f"{len(w.alone)} / {len(w.shared)} / {len(w.behind)}" for w in found]
            rows.append([f"{method}, {name}", *cells])
            behind = found[0].behind
            lost += [f"- {method}, {name}: {'; '.join(behind)}"] if behind else []
    text = table(["more / as much / less than", *against], rows)
    return _with_list(text, "Tolerates less than the best of them, or nothing", lost)


def one_setting(comparisons: Comparisons) -> str:
    """Compare each method, at one learning rate for all tasks, with tuned bare optimizers."""
    return _by_schedule(comparisons, _one_setting)


def _one_setting(c: Comparison) -> str:
    head = ["method", "fixed lr", "near its bare base", "near the best bare", "shortfall"]
    head += ["best lr in hindsight", "near its bare base", "near the best bare", "shortfall"]
    rows = []
    for method in families(c):
        fixed = [""] * 4
        if method in ONE_SETTING:
            fixed = _setting(at_one_setting(c, method, ONE_SETTING[method]))
        rows.append([method, *fixed, *_setting(in_hindsight(c, method))])
    return table(head, rows)


def _setting(found: OneSetting) -> list[str]:
    every = f"{found.near_any} of {len(found.any_base)}"
    return [f"{found.lr:g}", str(found), every, f"{shortfall(found.any_base):.1f}"]


def bests(comparisons: Comparisons) -> str:
    """Count where the best of wrapped optimizers is better or worse than that of bare ones."""
    return _by_schedule(comparisons, _bests)


def _bests(c: Comparison) -> str:
    head = ["method", "tasks", "better", "as good", "worse", "better by > 1", "worse by > 1"]
    rows, lost = [], []
    for method in [m for rule in RULES for m in wrapped_by(rule) if c.common([m])]:
        found = {task: at_their_bests(c, method, task) for task in trained(c, method)}
        units = [unit for _, unit in found.values()]
        won, less = ([sum(sign * u > n for u in units) for n in (NOISE, 1)] for sign in (1, -1))
        counts = [won[0], len(units) - won[0] - less[0], less[0], won[1], less[1]]
        rows.append([method, str(len(units)), *map(str, counts)])
        where = [
            f"{task} ({signed(gain)} {_unit(task)}, {signed(unit)} units)"
            for task, (gain, unit) in found.items()
            if unit < -NOISE
        ]
        lost += [f"- {method}: {'; '.join(where)}"] if where else []
    return _with_list(table(head, rows), f"Worse by more than {NOISE:g} units", lost)


def every_task(comparisons: Comparisons) -> str:
    """Give all that was measured, task by task."""
    return _by_schedule(comparisons, _every_task)


def _every_task(c: Comparison) -> str:
    fixed = {m: at_one_setting(c, m, lr) for m, lr in ONE_SETTING.items() if c.common([m])}
    wrapped = [m for m in fixed if "+" in m]
    parts = {
        f"Tolerance in decades (margin: {WIDE})": _grid(
            c, c.methods(), lambda m, t: _width(c, m, t)
        ),
        "Best value, and the learning rate that it is at": _grid(
            c, c.methods(), lambda m, t: f"{c.cells[m, t].best:.3g} at {c.cells[m, t].best_lr:g}"
        ),
        "At the fixed learning rate, against the tuned bare base": _grid(
            c, list(fixed), lambda m, t: difference(t, fixed[m].same_base.get(t))
        ),
        "At the fixed learning rate, against the best of all bare ones": _grid(
            c, list(fixed), lambda m, t: difference(t, fixed[m].any_base[t])
        ),
        "Best against the best of the bare base, in units of noise": _grid(
            c,
            wrapped,
            lambda m, t: signed(at_their_bests(c, m, t)[1]) if c.trains(m, t) else "never trains",
        ),
    }
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts.items())


def _grid(c: Comparison, methods: list[str], cell: Callable[[str, str], str]) -> str:
    """Return a table of methods and tasks."""
    rows = [[m, *(cell(m, t) if (m, t) in c.cells else "" for t in c.tasks)] for m in methods]
    return table(["", *c.tasks], rows)


def _with_list(text: str, title: str, items: list[str]) -> str:
    return f"{text}\n\n{title}:\n\n" + "\n".join(items) if items else text


def _width(c: Comparison, method: str, task: str) -> str:
    cell = c.cells[method, task]
    at_the_end = cell.highest == max(c.medians[task].index)
    return ("≥ " if at_the_end else "") + _decades(cell.decades)


def difference(task: str, found: float | None) -> str:
    if found is None:
        return "never trains"
    text = signed(found)
    return f"**{text}**" if is_near(task, found) else text


def families(c: Comparison) -> list[str]:
    """Return the methods that count: each base with its wrapped forms, then the tuners."""
    return [method for method in FAMILIES if method in c.methods()]


def _by_schedule(comparisons: Comparisons, section: Callable[[Comparison], str]) -> str:
    parts = [f"**Schedule: {n}**\n\n{section(c)}" for n, c in comparisons.items() if c.tasks]
    return "\n\n".join(parts) or "No task is complete yet."


def _names(methods: list[str]) -> str:
    if len(methods) == len(METHODS):
        return "all methods"
    for rule in RULES:
        if set(methods) == set(wrapped_by(rule)):
            return f"all with {rule}"
    return ", ".join(methods)


def _mean(value: float) -> str:
    return f"{value:.2f}" if value == value else ""


def _decades(value: float) -> str:
    return f"{value:.2f}" if value >= 0 else NONE


def signed(value: float) -> str:
    if value == -float("inf"):
        return "failed"
    text = f"{value:+.1f}" if abs(value) < 99.95 else f"{value:+.0f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _unit(task: str) -> str:
    return "points" if task in SCORED else "%"


SECTIONS: dict[str, Callable[[Comparisons], str]] = {
    "runs": runs,
    "never trains": never_trains,
    "targets": against_targets,
    "tolerances": tolerances,
    "tuners": against_tuners,
    "one setting": one_setting,
    "bests": bests,
    "every task": every_task,
}
