"""Encryption at rest: a store whose values of chosen resources are enciphered, as EncryptionConfiguration says.

Door: `controller.Encryption`, imported where there is a configuration. What is written has upstream's form
(`k8s:enc:aesgcm:v1:<key name>:` and so on), so either server reads the other's store.
Source: k8s.io/apiserver/pkg/server/options/encryptionconfig and storage/value/encrypt.
"""
