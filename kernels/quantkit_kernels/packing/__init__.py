"""From f32 weights to blocks: scales and mins are searched or taken from the source, then rounded; codes follow."""
