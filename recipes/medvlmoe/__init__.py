"""MedVLMoE: a vision-language model with a sparse Mixture of Experts for multi-label diagnosis.

Khan 2025, https://doi.org/10.55529/jaimlnn.51.114.121. What the paper prints and what is done here stands in
``docs/papers.md``.

The model is ``model``, its settings are ``config``; ``build`` makes a model from settings or from a run's folder, and
``inference`` runs it over studies. One module per stage of the command line, named after it:

| stage | what it writes into the run's folder |
|---|---|
| ``train`` (with ``balance``, its auxiliary losses) | checkpoints, ``history.jsonl``, ``training.json`` |
| ``evaluate`` (with ``examples``) | ``metrics.json``, ``predictions.csv``, ``examples.npz`` |
| ``external`` | ``external/NAME``: metrics and predictions on another data set |
| ``compare`` (of `recipes.shared`) | nothing of the run: differences of two evaluated runs |
| ``predict`` | nothing of the run: a table of predictions for images of the caller |
| ``report`` | ``report.html``, from what ``evaluate`` wrote |
"""
