"""DELETE and DELETECOLLECTION: preconditions, grace periods, finalizers and what happens to dependents.

Source: registry/rest/delete.go and registry/generic/registry/store.go.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from longshore.api import times
from longshore.machinery.errors import StatusError, conflict, modified, not_found
from longshore.machinery.http import Response
from longshore.master.apiserver import rendering
from longshore.master.apiserver.cache import Item, with_version
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.options import DeleteOptions
from longshore.master.apiserver.scheme import Endpoint
from longshore.master.apiserver.selection import selection
from longshore.master.apiserver.writes import Writer

Object = dict[str, Any]
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_RETRIES = 20
_ORPHAN_BY_DEFAULT = {("batch", "jobs")}
# Kinds whose last state answers the deletion; the others answer with a Status (ReturnDeletedObject of upstream's stores).
_SHOWN = frozenset(
    [("", p) for p in ("namespaces", "persistentvolumeclaims", "persistentvolumes", "pods", "podtemplates", "resourcequotas",
                       "serviceaccounts", "services")]
    + [("resource.k8s.io", p) for p in ("deviceclasses", "devicetaintrules", "resourceclaims", "resourceclaimtemplates",
                                        "resourcepoolstatusrequests", "resourceslices")]
    + [("storage.k8s.io", p) for p in ("csidrivers", "csinodes", "storageclasses", "volumeattachments",
                                       "volumeattributesclasses")]
)  # fmt: skip
JOB_WARNING = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set"
    " propagationPolicy=Orphan to suppress this warning"
)


def _later(seconds: int) -> str:
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


class Deleter:
    """Answers DELETE calls."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.hub = writer.hub
        # What the first deletion does to a CustomResourceDefinition.
        self.mark: Callable[[Object], None] | None = None

    async def delete(self, call: Call, options: DeleteOptions) -> Response:
        """A Status (of some kinds the last state) when the object is gone, the object when it is only marked."""
        endpoint = call.endpoint
        if (endpoint.group, endpoint.plural) == ("batch", "jobs") and not options.policy and options.orphan is None:
            call.warn(JOB_WARNING)
        obj, gone, shown = await self.delete_one(call, options)
        if gone and not shown:
            details: Object = {"name": call.info.name}
            if endpoint.group:
                details["group"] = endpoint.group
            details["kind"] = endpoint.plural
            details["uid"] = obj["metadata"].get("uid", "")
            return rendering.status_success(call, details)
        answer = endpoint.convert(obj, endpoint.version) if not endpoint.native else obj
        return rendering.tree_answer(call, answer, 200)

    async def delete_one(self, call: Call, options: DeleteOptions) -> tuple[Object, bool, bool]:
        """The object's last state (stored form), whether it is gone, whether the client is shown it nevertheless."""
        endpoint, info = call.endpoint, call.info
        cache = endpoint.cache
        assert cache is not None
        key = path(info.namespace if endpoint.namespaced else "", info.name)
        if not self.hub.current():
            await self.hub.fresh()
        current = cache.items.get(key)
        checked = False
        for _ in range(_RETRIES):
            if current is None:
                raise not_found(endpoint.group, endpoint.plural, info.name)
            stored = self._stored(endpoint, current)
            self._preconditions(endpoint, stored, options)
            if not checked:
                await self._admit(call, stored, options)
                checked = True
            done = await self._attempt(call, current, stored, options)
            if done is not None:
                return done
            await self.hub.fresh()
            newest = cache.items.get(key)
            current = newest if newest is not current else await self.writer.read(endpoint, key)
        raise modified(endpoint.group, endpoint.plural, info.name)

    def _stored(self, endpoint: Endpoint, item: Item) -> Object:
        resource = endpoint.storage.resource
        return {"kind": resource.kind, "apiVersion": endpoint.stored_head, **item.decode()}

    async def _admit(self, call: Call, stored: Object, options: DeleteOptions) -> None:
        endpoint = call.endpoint
        old = stored if endpoint.native else endpoint.convert(stored, endpoint.version)
        request = self.writer.admission.request(call, "DELETE", None, old, options.as_object(), options.dry_run)
        await self.writer.admission.admit(request)
        await self.writer.admission.validate(request)

    def _preconditions(self, endpoint: Endpoint, stored: Object, options: DeleteOptions) -> None:
        metadata = stored["metadata"]
        if options.uid is not None and options.uid != metadata.get("uid"):
            why = (
                f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata.get('uid', '')})."
                " The object might have been deleted and then recreated"
            )
            raise conflict(endpoint.group, endpoint.kind, metadata.get("name", ""), why)
        if options.version is not None and options.version != metadata.get("resourceVersion"):
            why = (
                f"the ResourceVersion in the precondition ({options.version}) does not match the ResourceVersion in record"
                f" ({metadata.get('resourceVersion', '')}). The object might have been modified"
            )
            raise conflict(endpoint.group, endpoint.kind, metadata.get("name", ""), why)

    async def _attempt(
        self, call: Call, current: Item, stored: Object, options: DeleteOptions
    ) -> tuple[Object, bool, bool] | None:
        endpoint = call.endpoint
        if (endpoint.group, endpoint.plural) == ("", "namespaces"):
            return await self._delete_namespace(call, current, stored, options)
        if (endpoint.group, endpoint.plural) == (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
        ) and self.mark is not None:
            return await self._delete_definition(call, current, stored, options)
        metadata = stored["metadata"]
        was_deleting = metadata.get("deletionTimestamp")
        grace = options.grace
        if grace is not None and grace < 0:
            grace = 1
        graceful, pending = False, False
        if (endpoint.group, endpoint.plural) == ("", "pods"):
            graceful, pending = self._pod_grace(stored, grace)
        changed = graceful
        finalizers = list(metadata.get("finalizers") or ())
        wanted = self._finalizers(endpoint, finalizers, options)
        if wanted != finalizers:
            changed = True
            if wanted:
                metadata["finalizers"] = wanted
            else:
                metadata.pop("finalizers", None)
        if pending and not changed:
            return stored, False, False
        remaining = bool(wanted)
        if remaining and not graceful:
            if not metadata.get("deletionTimestamp"):
                if metadata.get("generation"):
                    metadata["generation"] += 1
                metadata["deletionTimestamp"] = times.now()
                changed = True
            if metadata.get("deletionGracePeriodSeconds") != 0 and not (was_deleting and pending):
                metadata["deletionGracePeriodSeconds"] = 0
                changed = True
        if graceful or remaining:
            last_grace = metadata.get("deletionGracePeriodSeconds", 0)
            if graceful and not remaining and last_grace == 0:
                return await self._gone(call, current, stored, options, True)
            if not changed:
                return stored, False, False
            if options.dry_run:
                return stored, False, False
            item = await self._write(endpoint, current, stored)
            if item is None:
                return None
            metadata["resourceVersion"] = str(item.version)
            return stored, False, False
        kind = (endpoint.group, endpoint.plural)
        if kind == ("", "pods"):
            if not was_deleting:
                metadata["deletionTimestamp"] = times.now()
            metadata["deletionGracePeriodSeconds"] = 0
        return await self._gone(call, current, stored, options, kind in _SHOWN)

    async def _gone(
        self, call: Call, current: Item, stored: Object, options: DeleteOptions, shown: bool
    ) -> tuple[Object, bool, bool] | None:
        endpoint = call.endpoint
        if options.dry_run:
            return stored, True, shown
        cache = endpoint.cache
        assert cache is not None
        store = self.hub.store
        result = await store.delete_at(cache.prefix + current.key.encode(), current.version)
        if not result.succeeded:
            if result.kv is None:
                raise not_found(endpoint.group, endpoint.plural, call.info.name)
            return None
        if shown:
            stored["metadata"]["resourceVersion"] = str(result.revision)
        hook = self.writer.hooks.get((endpoint.group, endpoint.plural))
        if hook is not None:
            await hook.after_delete(call, stored)
        return stored, True, shown

    async def _write(self, endpoint: Endpoint, current: Item, stored: Object) -> Item | None:
        cache = endpoint.cache
        assert cache is not None
        value = rendering.encode_stored(stored)
        result = await self.hub.store.update(cache.prefix + current.key.encode(), value, current.version)
        if not result.succeeded:
            return None
        return Item(current.key, result.revision, with_version(value, result.revision))

    def _pod_grace(self, pod: Object, grace: int | None) -> tuple[bool, bool]:
        """Set a pod's deletion time; (it is a graceful deletion, one is pending already)."""
        metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        period = metadata.get("deletionGracePeriodSeconds")
        if period is not None and period < 0:
            period = metadata["deletionGracePeriodSeconds"] = 1
        if metadata.get("deletionTimestamp"):
            if not period:
                return False, False
            if grace is None or grace >= period:
                return False, True
            moved = times.parse(metadata["deletionTimestamp"]) + datetime.timedelta(seconds=grace - period)
            now = datetime.datetime.now(datetime.UTC)
            if moved < now:
                moved = now
                if grace:
                    grace = 1
            metadata["deletionTimestamp"] = moved.strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["deletionGracePeriodSeconds"] = grace
            return True, False
        if grace is None:
            grace = spec.get("terminationGracePeriodSeconds")
            if grace is None:
                grace = 30
        # An unscheduled or finished pod has nothing to wait for.
        if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
            grace = 0
        if grace < 0:
            grace = 1
        metadata["deletionTimestamp"] = _later(grace)
        metadata["deletionGracePeriodSeconds"] = grace
        if metadata.get("generation"):
            metadata["generation"] += 1
        return True, False

    def _finalizers(self, endpoint: Endpoint, present: list[str], options: DeleteOptions) -> list[str]:
        """The finalizers that the propagation policy leaves an object with."""
        if options.orphan is not None:
            orphan, foreground = options.orphan, False
        elif options.policy:
            orphan, foreground = options.policy == "Orphan", options.policy == "Foreground"
        elif ORPHAN in present or FOREGROUND in present:
            orphan, foreground = ORPHAN in present, FOREGROUND in present
        else:
            orphan, foreground = (endpoint.group, endpoint.plural) in _ORPHAN_BY_DEFAULT, False
        out = [f for f in present if f not in (ORPHAN, FOREGROUND)]
        if orphan:
            out.append(ORPHAN)
        if foreground:
            out.append(FOREGROUND)
        return out

    async def _delete_namespace(
        self, call: Call, current: Item, stored: Object, options: DeleteOptions
    ) -> tuple[Object, bool, bool] | None:
        """A namespace is first marked Terminating; it goes when its content and its finalizers are gone."""
        metadata = stored["metadata"]
        finalizers = list(metadata.get("finalizers") or ())
        wanted = self._finalizers(call.endpoint, finalizers, options)
        if not metadata.get("deletionTimestamp"):
            metadata["deletionTimestamp"] = times.now()
            stored.setdefault("status", {})["phase"] = "Terminating"
            if wanted:
                metadata["finalizers"] = wanted
            if options.dry_run:
                return stored, False, False
            item = await self._write(call.endpoint, current, stored)
            if item is None:
                return None
            metadata["resourceVersion"] = str(item.version)
            return stored, False, False
        if (stored.get("spec") or {}).get("finalizers") or wanted:
            return stored, False, False
        return await self._gone(call, current, stored, options, False)

    async def _delete_definition(
        self, call: Call, current: Item, stored: Object, options: DeleteOptions
    ) -> tuple[Object, bool, bool] | None:
        """A definition is marked; it goes when its objects are gone."""
        metadata = stored["metadata"]
        assert self.mark is not None
        if not metadata.get("deletionTimestamp"):
            self.mark(stored)
            if options.dry_run:
                return stored, False, False
            item = await self._write(call.endpoint, current, stored)
            if item is None:
                return None
            metadata["resourceVersion"] = str(item.version)
            return stored, False, False
        if metadata.get("finalizers"):
            return stored, False, False
        return await self._gone(call, current, stored, options, False)

    async def delete_collection(self, call: Call, options: DeleteOptions) -> Response:
        """Delete what the selectors choose; answers with the list of it."""
        endpoint = call.endpoint
        chosen = selection(call)
        await self.hub.fresh()
        cache = endpoint.cache
        assert cache is not None
        version = self.hub.version
        found = [i for i in cache.select(call.namespace) if not chosen or chosen.matches(endpoint, i)]
        objects = []
        for item in found:
            each = _each(call, item)
            try:
                obj, _, _ = await self.delete_one(each, _again(options))
            except StatusError as error:
                if error.code == 404:
                    continue
                raise
            objects.append(obj if endpoint.native else endpoint.convert(obj, endpoint.version))
        return rendering.trees_answer(call, objects, rendering.list_metadata(version))


def _each(call: Call, item: Item) -> Call:
    info = call.info._replace(namespace=item.namespace, name=item.name)
    return Call(call.request, info, call.endpoint, call.verb, call.user, call.form, call.warnings, call.annotations)


def _again(options: DeleteOptions) -> DeleteOptions:
    out = DeleteOptions()
    for name in DeleteOptions.__slots__:
        setattr(out, name, getattr(options, name))
    return out
