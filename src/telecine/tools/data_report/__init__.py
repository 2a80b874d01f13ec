"""What a training run will see of its data, before training: sampled clips, files, copies, cuts, reading speed."""
