"""Networks: a backbone, a decode head with the slot of an operator, and the segmentor around both."""
