"""The collector: health stream to database, exactly once."""
