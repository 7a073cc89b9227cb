//! Change data capture from relational databases to a Parquet lake, exactly once.
