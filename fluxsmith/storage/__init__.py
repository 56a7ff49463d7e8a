"""What must not be lost or trusted blindly: atomic writes, checkpoints, tensor files."""
