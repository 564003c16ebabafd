"""What recorded runs say: tables and pictures of a folder that ``fleetpulse simulate`` or ``load`` wrote."""
