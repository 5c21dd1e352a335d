"""Experiments: text, tasks, metrics, data modules, LightningModules."""
