"""What the service is measured against: each a small app, started as its own documentation says."""
