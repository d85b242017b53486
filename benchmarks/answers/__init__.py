"""The situations of `benchmarks.known_answers`: one module per family of attacks, each with its `SITUATIONS`."""
