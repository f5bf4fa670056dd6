"""How kernels become machine code: the one decorator, how entries link what they call, where compiled code is kept."""
