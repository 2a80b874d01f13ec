"""Operations below the networks: fast convolutions for the CPU, their double backward, checkpointed calls."""
