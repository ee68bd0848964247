"""Templates of strangers, rendered in a process of their own, which the kernel bounds."""
