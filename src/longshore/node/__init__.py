"""A node of the picture: kubelet, kube-proxy, kube-dns, Fluentd's log collection."""
