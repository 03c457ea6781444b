"""MedVLMoE: a vision-language model with a sparse Mixture of Experts for multi-label diagnosis.

Khan 2025, https://doi.org/10.55529/jaimlnn.51.114.121. One file per stage: ``config``, ``data``, ``model``,
``balance``, ``train``, ``evaluate``, ``predict``, ``report``. What the paper prints and what is done here stands
in ``docs/papers.md``.
"""
