"""Situations that rules for step sizes find hard: some to choose on, others to judge."""
