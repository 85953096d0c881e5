"""Trackers: where a customer's tickets are. The embedded one keeps them in the customer's ledger."""
