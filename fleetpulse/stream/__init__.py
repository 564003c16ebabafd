"""The health stream: its messages, topics, units, and the picture of the fleet they add up to."""
