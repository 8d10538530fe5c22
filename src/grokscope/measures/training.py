"""What training itself logs beside the probe: records of numbers that no probe measures."""

from __future__ import annotations

from functools import partial

from grokscope.measures.record import Measure

_logged = partial(Measure, range="≥ 0", cost="O(1)", needs=("training",))
RECORDS = (
    _logged(
        name="parameter_norm",
        symbol="‖θ‖",
        formula="√ Σ θ² over all trainable parameters",
        cost="O(parameters)",
    ),
    _logged(
        name="trained_parameter_norm",
        formula="√ Σ θ² over all trainable parameters that can receive a gradient",
        cost="O(parameters)",
        note="Without the weights of convolutions that only ever multiply padding, because the "
        "feature map is smaller than the kernel: 62 % of those of ResNet-18 behind its 7x7 stem on "
        "32x32 images. The loss does not depend on them; weight decay shrinks them, and without it "
        "they keep their initial values. Logged where there are such weights.",
    ),
    _logged(
        name="minibatch_loss",
        title="loss on training batches",
        unit="nats",
        direction="low is good",
        formula="mean loss of the batches since the last look",
        note="In training mode, while the weights moved, with label smoothing and temperature, "
        "without penalties: not comparable with the loss.",
    ),
    _logged(
        name="diverged",
        range="1",
        formula="1 at the step where features or logits are no longer finite",
        note="The run ends there.",
    ),
)
