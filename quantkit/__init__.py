"""quantkit: pack fp16 weights into int4/int8 blocks and run them on a CPU straight from the packed bytes."""
