"""The commands of `lighter-freezers`: a file each, imported when it is asked for."""
