"""The report's training curves."""

from recipes.shared.report.training import Curve

CURVES = (
    Curve("Loss", (("total, training", "train_loss"), ("task, training", "task_loss"), ("validation", "val_loss"))),
    Curve("Validation macro AUROC", (("macro AUROC", "val_macro_auroc"),), best="val_macro_auroc"),
    Curve("Learning rate", (("encoders", "lr_encoder"), ("mixture and classifier", "lr_head"))),
    Curve("Load-balancing loss", (("load-balancing loss", "balance_loss"),)),
    Curve("Router z-loss", (("router z-loss", "z_loss"),)),
    Curve(
        "Entropy of the load (nats)",
        (("training", "load_entropy"), ("validation", "val_load_entropy")),
        is_entropy=True,
    ),
    Curve("Experts that live", (("training", "live_experts"), ("validation", "val_live_experts"))),
    Curve("Largest load over the mean, less 1", (("training", "max_violation"), ("validation", "val_max_violation"))),
    Curve("Entropy of a study's probabilities (nats)", (("entropy", "router_entropy"),), is_entropy=True),
)
