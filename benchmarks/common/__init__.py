"""What the benchmarks share: environments of other libraries, real models and text."""
