"""How jobs are run: work in rows, claimed, guarded, put back."""
