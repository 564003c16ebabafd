"""Asking control: the client of its API, and the commands made of it."""
