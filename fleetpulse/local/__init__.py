"""The embedded stack: everything ``fleetpulse up`` starts on one machine."""
