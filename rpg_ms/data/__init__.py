"""Images and batches."""
