"""A stand-in for a vLLM server: its HTTP interface and its metrics, over a scheduler that only counts tokens."""
