"""Situations that rules for step sizes find hard: half to choose on, half to judge."""
