//! Real databases, crash tests, simulation and benchmarks for caudal.
