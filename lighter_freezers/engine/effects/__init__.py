"""What follows a change of flags: norm layers, optimizer groups and state, the DDP wrapper."""
