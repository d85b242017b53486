"""What client, attacker and defender exchange: all that a plug-in needs."""
