"""The paper's Tables 1 and 2 and Figure 3, each by one command: sweeps of runs, and what is drawn from them.

``models`` and ``sets`` are the rows and columns, ``cells`` what a cell runs, ``sweep`` the order in which they run;
``printed`` holds what the paper prints. Table 3 counts operations: ``recipes.medmoe.flops``.
"""
