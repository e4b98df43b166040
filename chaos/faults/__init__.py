"""The faults, in modules by what they hit."""
