"""The cases of each op, a module an op: `op(device)` is what `bench.op` runs."""
