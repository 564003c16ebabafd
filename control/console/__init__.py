"""The console: the fleet for people, as a page that talks to the API and to nothing else."""
