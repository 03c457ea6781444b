"""The report's training curves."""

from recipes.shared.report.training import Curve

CURVES = (
    Curve("Loss", (("total, training", "train_loss"), ("task, training", "task_loss"), ("validation", "val_loss"))),
    Curve("Validation macro AUROC", (("macro AUROC", "val_macro_auroc"),), best="val_macro_auroc"),
    Curve("Learning rate", (("encoders", "lr_encoder"), ("mixture and classifier", "lr_head"))),
    Curve("Load-balancing loss", (("load-balancing loss", "balance_loss"),)),
    Curve("Router z-loss", (("router z-loss", "z_loss"),)),
    Curve("Router entropy (nats)", (("entropy", "router_entropy"),), is_entropy=True),
)
