"""What the notebooks run: profiles, the runs behind every table, and the studies beyond Table 1."""
