"""Gradient norms: measured, combined with clipping, written to files."""
