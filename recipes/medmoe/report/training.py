"""The report's training curves."""

from recipes.shared.report.training import Curve

CURVES = (
    Curve("Loss, total", (("training", "train_loss"), ("validation", "val_loss")), best="val_loss"),
    Curve("Global contrastive loss", (("training", "global_loss"), ("validation", "val_global_loss"))),
    Curve("Local contrastive loss", (("training", "local_loss"), ("validation", "val_local_loss"))),
    Curve("Router loss (modality)", (("training", "router_loss"), ("validation", "val_router_loss"))),
    Curve("Routing accuracy", (("training", "routing_accuracy"), ("validation", "val_routing_accuracy"))),
    Curve("Experts that live", (("training", "live_experts"), ("validation", "val_live_experts"))),
    Curve("Router entropy (nats)", (("training", "router_entropy"),), is_entropy=True),
    Curve("Load-balancing loss", (("training", "balance_loss"),)),
    Curve("Learning rate", (("learning rate", "lr"),)),
)
