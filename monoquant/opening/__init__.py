"""What a person names on a command line, opened: models by what is in them, and calibration data."""
