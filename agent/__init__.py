"""The worker agent: reads a host, its GPUs and its engine, and writes the health stream."""
