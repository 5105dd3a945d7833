"""The descriptions of table columns: most are those of fields, found in the kinds' definitions.

Source: pkg/printers/internalversion/printers.go.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
_NAMES = "Names of each container in the template."
_IMAGES = "Images referenced by each container in the template."
_READY = "Number of the pod with ready state"
# group/plural: column=a path of fields below the kind, or a text in quotes.
_TEXTS = f"""
/pods: Ready="The aggregate readiness state of this pod for accepting traffic."|Status="The aggregate status of the containers in this pod."|Restarts="The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."|IP=status.podIP|Node=spec.nodeName|Nominated Node=status.nominatedNodeName|Readiness Gates=spec.readinessGates
/podtemplates: Containers="{_NAMES}"|Images="{_IMAGES}"|Pod Labels="The labels for the pod template."
policy/poddisruptionbudgets: Min Available="The minimum number of pods that must be available."|Max Unavailable="The maximum number of pods that may be unavailable."|Allowed Disruptions="Calculated number of pods that may be disrupted at this time."
/replicationcontrollers: Desired=spec.replicas|Current=status.replicas|Ready=status.readyReplicas|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.selector
apps/replicasets: Desired=spec.replicas|Current=status.replicas|Ready=status.readyReplicas|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.selector
apps/daemonsets: Desired=status.desiredNumberScheduled|Current=status.currentNumberScheduled|Ready=status.numberReady|Up-to-date=status.updatedNumberScheduled|Available=status.numberAvailable|Node Selector=spec.template.spec.nodeSelector|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.selector
apps/deployments: Ready="{_READY}"|Up-to-date=status.updatedReplicas|Available=status.availableReplicas|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.selector
apps/statefulsets: Ready="{_READY}"|Containers="{_NAMES}"|Images="{_IMAGES}"
batch/jobs: Status="Status of the job."|Completions=status.succeeded|Duration="Time required to complete the job."|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.selector
batch/cronjobs: Schedule=spec.schedule|Timezone=spec.timeZone|Suspend=spec.suspend|Active=status.active|Last Schedule=status.lastScheduleTime|Containers="{_NAMES}"|Images="{_IMAGES}"|Selector=spec.jobTemplate.spec.selector
/services: Type=spec.type|Cluster-IP=spec.clusterIP|External-IP=spec.externalIPs|Port(s)=spec.ports|Selector=spec.selector
networking.k8s.io/ingresses: Class="The name of the IngressClass resource that should be used for additional configuration"|Hosts="Hosts that incoming requests are matched against before the ingress rule"|Address="Address is a list containing ingress points for the load-balancer"|Ports="Ports of TLS configurations that open"
networking.k8s.io/ingressclasses: Controller="Controller that is responsible for handling this class"|Parameters="A reference to a resource with additional parameters"
networking.k8s.io/networkpolicies: Pod-Selector=spec.podSelector
/endpoints: Endpoints=subsets
/nodes: Status="The status of the node"|Roles="The roles of the node"|Version=status.nodeInfo.kubeletVersion|Internal-IP=status.addresses|External-IP=status.addresses|OS-Image=status.nodeInfo.osImage|Kernel-Version=status.nodeInfo.kernelVersion|Container-Runtime=status.nodeInfo.containerRuntimeVersion
/events: Last Seen=lastTimestamp|Type=type|Reason=reason|Object=involvedObject|Subobject=involvedObject.fieldPath|Source=source|Message=message|First Seen=firstTimestamp|Count=count
events.k8s.io/events: Last Seen=deprecatedLastTimestamp|Type=type|Reason=reason|Object=regarding|Message=note
/namespaces: Status="The status of the namespace"
/secrets: Type=type|Data=data
/serviceaccounts: Secrets=secrets
/persistentvolumes: Capacity=spec.capacity|Access Modes=spec.accessModes|Reclaim Policy=spec.persistentVolumeReclaimPolicy|Status=status.phase|Claim=spec.claimRef|StorageClass="StorageClass of the pv"|VolumeAttributesClass="VolumeAttributesClass of the pv"|Reason=status.reason|VolumeMode=spec.volumeMode
/persistentvolumeclaims: Status=status.phase|Volume=spec.volumeName|Capacity=status.capacity|Access Modes=status.accessModes|StorageClass="StorageClass of the pvc"|VolumeAttributesClass="VolumeAttributesClass of the pvc"|VolumeMode=spec.volumeMode
/componentstatuses: Status="Status of the component conditions"|Message="Message of the component conditions"|Error="Error of the component conditions"
/configmaps: Data=data
/resourcequotas: Request="Request represents a minimum amount of cpu/memory that a container may consume."|Limit="Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."
autoscaling/horizontalpodautoscalers: Reference=spec.scaleTargetRef|Targets=status.currentMetrics|MinPods=spec.minReplicas|MaxPods=spec.maxReplicas|Replicas=status.currentReplicas
rbac.authorization.k8s.io/rolebindings: Role=roleRef|Users="Users in the roleBinding"|Groups="Groups in the roleBinding"|ServiceAccounts="ServiceAccounts in the roleBinding"
rbac.authorization.k8s.io/clusterrolebindings: Role=roleRef|Users="Users in the clusterRoleBinding"|Groups="Groups in the clusterRoleBinding"|ServiceAccounts="ServiceAccounts in the clusterRoleBinding"
certificates.k8s.io/certificatesigningrequests: SignerName=spec.signerName|Requestor=spec.username|RequestedDuration=spec.expirationSeconds|Condition=status.conditions
coordination.k8s.io/leases: Holder=spec.holderIdentity
storage.k8s.io/storageclasses: Provisioner=provisioner|ReclaimPolicy=reclaimPolicy|VolumeBindingMode=volumeBindingMode|AllowVolumeExpansion=allowVolumeExpansion
storage.k8s.io/volumeattachments: Attacher=spec.attacher|PV=spec.source.persistentVolumeName|Node=spec.nodeName|Attached=status.attached
discovery.k8s.io/endpointslices: AddressType=addressType|Ports=ports|Endpoints=endpoints
scheduling.k8s.io/priorityclasses: Value=value|Global-Default=globalDefault|PreemptionPolicy=preemptionPolicy
node.k8s.io/runtimeclasses: Handler=handler
flowcontrol.apiserver.k8s.io/flowschemas: PriorityLevel=spec.priorityLevelConfiguration|MatchingPrecedence=spec.matchingPrecedence|DistinguisherMethod=spec.distinguisherMethod|MissingPL="references a broken or non-existent PriorityLevelConfiguration"
flowcontrol.apiserver.k8s.io/prioritylevelconfigurations: Type=spec.type|NominalConcurrencyShares=spec.limited.nominalConcurrencyShares|Queues=spec.limited.limitResponse.queuing.queues|HandSize=spec.limited.limitResponse.queuing.handSize|QueueLengthLimit=spec.limited.limitResponse.queuing.queueLengthLimit
apiregistration.k8s.io/apiservices: Service="The reference to the service that hosts this API endpoint."|Available="Whether this service is available."
apps/controllerrevisions: Controller="Controller of the object"|Revision=revision
networking.k8s.io/ipaddresses: ParentRef=spec.parentRef
networking.k8s.io/servicecidrs: CIDRs=spec.cidrs
storage.k8s.io/csidrivers: AttachRequired=spec.attachRequired|PodInfoOnMount=spec.podInfoOnMount|StorageCapacity=spec.storageCapacity|TokenRequests=spec.tokenRequests|RequiresRepublish=spec.requiresRepublish|Modes=spec.volumeLifecycleModes
storage.k8s.io/csinodes: Drivers="Drivers indicates the number of CSI drivers registered on the node"
storage.k8s.io/volumeattributesclasses: DriverName=driverName
admissionregistration.k8s.io/mutatingwebhookconfigurations: Webhooks="Webhooks indicates the number of webhooks registered in this configuration"
admissionregistration.k8s.io/validatingwebhookconfigurations: Webhooks="Webhooks indicates the number of webhooks registered in this configuration"
admissionregistration.k8s.io/mutatingadmissionpolicies: Mutations="Mutations indicates the number of mutation rules defined in this configuration"|ParamKind="ParamKind specifies the kind of resources used to parameterize this policy"
admissionregistration.k8s.io/validatingadmissionpolicies: Validations="Validations indicates the number of validation rules defined in this configuration"|ParamKind="ParamKind specifies the kind of resources used to parameterize this policy"
admissionregistration.k8s.io/mutatingadmissionpolicybindings: PolicyName="PolicyName indicates the policy definition which the policy binding binded to"|ParamRef="ParamRef indicates the param reference which sets the configration param"
admissionregistration.k8s.io/validatingadmissionpolicybindings: PolicyName="PolicyName indicates the policy definition which the policy binding binded to"|ParamRef="ParamRef indicates the param reference which sets the configration param"
resource.k8s.io/resourceslices: Node=spec.nodeName|Driver=spec.driver|Pool=spec.pool.name
"""
_EVERY = {"Name": "metadata.name", "Age": "metadata.creationTimestamp", "Created At": "metadata.creationTimestamp"}
_tables: dict[str, dict[str, str]] = {}
_found: dict[tuple[str, str, str], dict[str, str]] = {}


def descriptions(group: str, version: str, plural: str, kind: str) -> dict[str, str]:
    """What the columns of a kind's table show, by column. Columns of which nothing is known are not there."""
    key = (group, version, plural)
    found = _found.get(key)
    if found is None:
        found = _found[key] = _describe(group, version, plural, kind)
    return found


def _describe(group: str, version: str, plural: str, kind: str) -> dict[str, str]:
    from longshore.api import definitions

    if not _tables:
        for line in _TEXTS.strip().splitlines():
            name, _, columns = line.partition(": ")
            _tables[name] = dict(part.split("=", 1) for part in columns.split("|"))
    texts = definitions.descriptions()
    by_kind = definitions.by_kind()
    out = {}
    for column, text in (_EVERY | _tables.get(f"{group}/{plural}", {})).items():
        if text.startswith('"'):
            out[column] = text.strip('"')
            continue
        root = ("", "v1", "Pod") if text.startswith("metadata.") else (group, version, kind)
        described = ""
        definition = by_kind.get(root, "")
        for name in text.split("."):
            described = texts.get(definition, {}).get(name, "")
            definition = _type_of(definition, name)
        if described:
            out[column] = described
    return out


def _type_of(definition: str, field: str) -> str:
    """The definition that a field of a definition refers to."""
    from longshore.api import definitions

    try:
        properties: Object = definitions.definition(definition)[0].get("properties") or {}
    except KeyError:
        return ""
    shown = properties.get(field) or {}
    references = [r["$ref"] for r in (shown, *(shown.get("allOf") or ())) if "$ref" in r]
    return references[0].rpartition("/")[2] if references else ""
