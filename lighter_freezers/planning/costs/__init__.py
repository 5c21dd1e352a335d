"""What a training step costs, what freezing saves of it, and compiling that does not lose it again."""
