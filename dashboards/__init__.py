"""Grafana's dashboards, written as tables of panels; ``python -m dashboards`` makes the JSON beside this file."""
