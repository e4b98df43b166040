"""Coverage-guided fuzzing of what strangers write: records and schemas. ``make fuzz``, or ``python -m fuzz --help``."""
