"""The weights that training from scratch starts from, all in one place.

A new network predicts exactly 0 and each of its blocks is the identity, whatever its size.
"""

from torch import nn

from fluxsmith.model.blocks import LastLayer, MLPEmbedder, Modulation


def initialise(network: nn.Module) -> None:
    """As DiT (Peebles & Xie 2023, sec. 3.2 "adaLN-Zero" and its reference implementation):

    - linear layers: Xavier uniform (Glorot & Bengio 2010, eq. 16), biases 0;
    - the embedders of time, guidance and pooled text: normal, standard deviation 0.02;
    - every modulation and the output layer: 0, so gates are closed and the prediction is 0.

    The scales of the RMS norms stay at the 1 that they were made with.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, MLPEmbedder):
            nn.init.normal_(module.in_layer.weight, std=0.02)
            nn.init.normal_(module.out_layer.weight, std=0.02)
        elif isinstance(module, Modulation):
            nn.init.zeros_(module.lin.weight)
        elif isinstance(module, LastLayer):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.modulation.weight)
