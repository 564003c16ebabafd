"""What every fleetpulse service shares, and the ``fleetpulse`` command."""

__version__ = "0.1.0"
