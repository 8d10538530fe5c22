"""Losses and confidence, arm by arm."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.panels import single
from grokscope.report.tables import levels_table


def losses_by_arm(study: Study, canvas: Canvas) -> Drawn:
    """Both losses, the logit scale, and the loss on the batches that training saw, of every arm."""
    arms = study.arms
    panels = (
        single("loss", "train", "Loss, training, nats", "log"),
        single("loss", "validation", "Loss, held out, nats"),
        single("logit_scale", "train", "Logit scale, training, nats"),
        single("minibatch_loss", "train", "Minibatch loss, nats", "log"),
    )
    remarks = canvas.compare(arms, panels, across=2)
    if any(arm.has("minibatch_loss") for arm in arms):
        remarks = (
            "The minibatch loss is the mean over the steps since the last look, in training mode "
            "while the weights move and without penalties; all else is measured in evaluation "
            "mode.",
            *remarks,
        )
    columns = (("Loss, held out", "loss", "validation"),)
    table = levels_table("losses_by_arm", "Losses at the end", arms, columns)
    caption = "The loss, and how large the logits are: how confident the network is."
    return Drawn(canvas.figure, "Losses and confidence", caption, tables=(table,), remarks=remarks)
