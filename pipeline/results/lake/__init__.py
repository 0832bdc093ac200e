"""The results lake: schemas, Parquet shards, and the protocol that commits them."""
