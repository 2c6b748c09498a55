"""What a worker can be asked to measure, a module each with a class `Task`."""
