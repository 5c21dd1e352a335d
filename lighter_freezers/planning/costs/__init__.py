"""What a training step costs, and how much of it freezing saves."""
