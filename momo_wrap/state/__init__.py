"""The state of the wrapper: saved, loaded, and shared with the base optimizer."""
