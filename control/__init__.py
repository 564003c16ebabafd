"""The control service: what the fleet is, was and should be."""
