"""Gradient norms: measured, hooked into the backward pass, written to files."""
