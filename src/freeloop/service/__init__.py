"""The reference service that ``freeloop serve`` runs: waiting tasks, external data and items.

Every other room is proven on it. May be imported by ``cli`` only.
"""
