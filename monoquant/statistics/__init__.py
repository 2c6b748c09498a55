"""What calibration learns of the inputs that weights are multiplied with."""
