"""Parameters and operations: the paper's Table 3.

``stage`` counts a preset of MedMoE by ``counting``; ``table3`` sets it beside the baselines' ``trunks``, by the
``conventions`` of the paper's figures.
"""
