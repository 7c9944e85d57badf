"""The app of ``json_route`` with the kit in it, for plain uvicorn."""

from bench.peers.json_route import app
from freeloop import Freeloop

kit = Freeloop(app)
