"""What training itself logs beside the probe: records of numbers that no probe measures."""

from __future__ import annotations

from grokscope.measures.record import Measure

RECORDS = (
    Measure(
        name="parameter_norm",
        title="parameter norm",
        symbol="‖θ‖",
        range="≥ 0",
        formula="√ Σ θ² over all trainable parameters",
        cost="O(parameters)",
        needs=("training",),
    ),
    Measure(
        name="minibatch_loss",
        title="loss on training batches",
        unit="nats",
        direction="low is good",
        range="≥ 0",
        formula="mean loss of the batches since the last look",
        cost="O(1)",
        note="In training mode, while the weights moved, with label smoothing and temperature, "
        "without penalties: not comparable with the loss.",
        needs=("training",),
    ),
    Measure(
        name="diverged",
        title="diverged",
        range="1",
        formula="1 at the step where features or logits are no longer finite",
        cost="O(1)",
        note="The run ends there.",
        needs=("training",),
    ),
)
