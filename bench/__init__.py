"""Benchmarks. Nothing here is imported by the product, and no test asserts a time."""
