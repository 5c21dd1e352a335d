"""The package's logger: one line per change of what trains, and one per text that is read."""

import logging

__all__ = ["log"]

log = logging.getLogger("lighter_freezers")
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # as Lightning does: print, unless logging is configured
    log.addHandler(logging.StreamHandler())
    log.propagate = False
