"""The OpenAI-compatible proxy: routes by the health stream."""
