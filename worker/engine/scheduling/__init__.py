"""Who runs, who waits, who has ended, whose KV block is whose. No tensors."""
