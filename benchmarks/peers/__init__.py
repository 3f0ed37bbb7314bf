"""Other programs run on the benchmark's images, and one evaluator for all of them."""
