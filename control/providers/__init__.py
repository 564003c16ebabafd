"""Where machines come from: one small interface, and a provider a folder or file."""
