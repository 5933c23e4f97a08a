"""What the wrapper keeps, saves and loads, and shares with the optimizer that it wraps."""
