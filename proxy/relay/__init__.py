"""From the chosen worker's engine to the client: bytes, as they come."""
