"""Step rules of this library's own that were tried and did not help; what was seen is measured."""
