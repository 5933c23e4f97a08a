"""Losses, bounds and probes that are recorded before the step, for accumulated gradients."""

from momo_wrap.losses.pending import PendingLosses
from momo_wrap.losses.records import RecordsLosses

__all__ = ["PendingLosses", "RecordsLosses"]
