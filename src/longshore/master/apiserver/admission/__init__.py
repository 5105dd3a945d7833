"""Admission: what changes and checks every write, a chain of small plugins in one order (`plugins`).

Door: `plugins(config, api)`. A plugin implements `context.AdmissionPlugin`; it reads the server's own objects through
`AdmissionRequest.api`. Does not belong here: defaults and validation of the kinds (`longshore.api`), authorization.
"""

from longshore.master.apiserver.admission.chain import plugins

__all__ = ["plugins"]
