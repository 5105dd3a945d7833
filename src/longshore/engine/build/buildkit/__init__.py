"""BuildKit's services for `docker buildx build` with the default driver.

Door: Control and LLBBridge over POST /grpc, the client's session over POST /session (both HTTP/2 inside an upgraded
connection). The Dockerfile frontend runs here; definitions of other frontends (LLB) are refused.
"""
