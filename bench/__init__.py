"""The benchmark programs of the repository: `pyenc bench`, or `python bench` in a checkout.

Imports run one way, and tests/bench/test_bench_layers.py holds them to it:

    measure <- compare, attention_data <- peers <- ops
    measure <- show
    all of these <- check <- the programs: op, models, tune, aot
"""
