"""The policies that were compared for the gate's limit, and the comparison: ``python -m bench limits``."""
