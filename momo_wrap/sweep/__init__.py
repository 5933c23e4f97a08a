"""Learning rate sweeps: many runs in parallel on Optuna, tolerances, figures and a report.

Example:
    >>> results = sweep.run(train, {"AdamW": adamw}, [1e-3, 1e-2, 1e-1], range(3), "sweep.csv")
    >>> sweep.tolerance(results, margin=0.02)
    >>> sweep.plot_scores(results, "sweep.png")
"""

try:
    from momo_wrap.sweep.comparing import at_random_lr, tolerance
    from momo_wrap.sweep.kept import forget, load, load_curves
    from momo_wrap.sweep.plots import plot_losses, plot_scores, plot_step_sizes
    from momo_wrap.sweep.report import report
    from momo_wrap.sweep.running import run
    from momo_wrap.sweep.training import OptimizerFactory, Train
except ModuleNotFoundError as error:
    raise ImportError(
        f"momo_wrap.sweep needs {error.name}, which is not installed: pip install momo_wrap[sweep]"
    ) from error

__all__ = [
    "OptimizerFactory",
    "Train",
    "at_random_lr",
    "forget",
    "load",
    "load_curves",
    "plot_losses",
    "plot_scores",
    "plot_step_sizes",
    "report",
    "run",
    "tolerance",
]
