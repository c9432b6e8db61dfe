"""What foreign bytes go through before anything else reads or shows them."""
