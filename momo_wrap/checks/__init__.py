"""Checks before anything is changed. Each error says what to write instead."""
