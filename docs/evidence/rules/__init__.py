"""New step rules that did not help; docs/evidence.md has their measurement."""
