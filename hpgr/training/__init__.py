"""Losses, the training loop, checkpoints and the two training stages.

Needs torch, numpy, safetensors and tqdm alone: a machine with a GPU and nothing else trains from
`artifacts/sessions/arrays` and plain objects in the place of `hpgr.config.Config`.
"""
