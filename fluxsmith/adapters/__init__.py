"""LoRA: small trained changes beside frozen weights, as layers and as plain tensors."""
