"""The master of the picture: etcd's store, API server, scheduler, controllers."""
