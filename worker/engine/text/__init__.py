"""Token ids become text: by each token's own text where the decoder allows it. Knows no sequences and no tensors."""
