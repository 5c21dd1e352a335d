"""Metrics over whole data sets."""
