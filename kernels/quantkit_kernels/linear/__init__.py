"""Matrix products of packed or plain weights, and the int8 activations that packed weights are multiplied with."""
