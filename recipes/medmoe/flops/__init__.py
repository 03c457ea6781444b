"""Parameters and operations: the paper's Table 3. Start reading at ``stage``; ``counting`` counts."""
