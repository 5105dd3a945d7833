"""With whose credentials images are pulled, and who may use an image that was pulled with them.

Door: `Keyring` (logins for an image) and `PullRecords` (who has pulled what). Pulling itself is `images.ImageManager`.
"""
