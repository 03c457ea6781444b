"""The paper's Tables 1 and 2 and Figures 2 and 3, each by one command: sweeps of runs, and what is drawn from them."""
