"""The package's logger: one line per change of what trains, and per text that is read."""

import logging

__all__ = ["log"]

log = logging.getLogger("lighter_freezers")
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # as Lightning does: be seen, unless somebody set logging up
    log.addHandler(logging.StreamHandler())
    log.propagate = False
