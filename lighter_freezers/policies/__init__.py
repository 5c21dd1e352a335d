"""Published methods that choose which layers train when, each in a file, on the engine's public names."""
