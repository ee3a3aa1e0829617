"""Models: own code, pretrained weights, checkpoints and their cards, heads, the teacher."""
