"""The commands of `lighter-freezers`: one file each, imported when the command is run."""
