"""The frozen reference: which checkpoint it is, its fingerprint, and its model on the policy's ranks."""
