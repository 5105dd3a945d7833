"""Audit: who did what, by a policy, to a log file and to a webhook.

Door: `flags.Options` and `opening.open_auditor`, which is imported where there is a policy. Does not belong here: what an
annotation says (admission, authorization).
Source: k8s.io/apiserver/pkg/audit, its endpoint filter and plugin/pkg/audit; API: audit.k8s.io/v1.
"""
