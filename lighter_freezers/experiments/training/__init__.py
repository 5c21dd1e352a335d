"""LightningModules and LightningDataModules for `pytorch_lightning`.

Those for `lightning.pytorch` are in `lighter_freezers.lightning`.
"""
