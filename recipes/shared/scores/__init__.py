"""Scores of predictions and of retrieval, their intervals, and how experts were used.

| module | what it computes |
|---|---|
| ``metrics`` | AUROC, average precision and accuracy of one split, with intervals over patients |
| ``confusion`` | confusion matrix of a single-label task |
| ``temperature`` | temperatures fitted on the validation split |
| ``calibration`` | negative log-likelihood, Brier score and calibration error with its sampling floor |
| ``calibrated`` | both of them for a run |
| ``operating_points`` | sensitivity and specificity at thresholds of the validation split |
| ``subgroups`` | AUROCs by sex, age, view and the like |
| ``paired`` | two models on the same studies: DeLong, paired bootstrap over patients, Holm |
| ``seeds`` | mean and t-interval over training seeds |
| ``bootstrap`` | resampling of patients |
| ``retrieval`` | recall at K between images and texts |
| ``expert_usage`` | load of the experts, overall and by class |
| ``specialisation`` | experts assigned to diseases, tested against exchanged patients |
"""
