"""`telecine prune`: a model with some of the channels of another one, which starts with its weights.

| word | what it is |
|---|---|
| stage | the layers of a network between two changes of resolution; a configuration states its channels |
| stage group | stages that keep the same share of their channels: `StageGroup`, found by `Widths.stage_groups` |
| channel group | channels that are kept or removed together, in all weights that have them: `ChannelGroup` |
| slice | the least part of a channel group that can be removed: one channel, or all of one group of the group norms |
| norm group | a group of a `GroupNorm`; `num_norm_groups`: those that each keep as many slices, 1 if there are none |
| axis | a dimension of a weight that has the channels of a group: `ChannelAxis` |
| set | all channels of a group once, in an axis that has them several times, such as queries, keys and values |
| share | the fraction of its slices that a stage group keeps, as `kept_shares` chooses it |
| part | what is pruned of a model: the decoder, or both encoder and decoder (`Part`) |
| target | that part of one model, with its configuration and how it is built again: `Prunable` |
| width, widths | how many channels a network has; where its configuration states them: `Widths` |

Each name is imported on first use: the help of the command need not wait for PyTorch.
"""

import lazy_loader  # type: ignore[import-untyped]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"pruning": ["PruneResult", "prune"]}
)
