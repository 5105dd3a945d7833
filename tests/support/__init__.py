"""What the journeys share: a throw-away cluster, the clients that people use, polling without sleeping blindly."""
