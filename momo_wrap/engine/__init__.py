"""Arithmetic on flat blocks of parameters: plans, blocks and the two passes over them."""
