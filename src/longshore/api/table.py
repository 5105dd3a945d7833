"""The resources that a Kubernetes 1.36 server serves by default, one line each, and their table columns."""

# group | plural | kind | n(amespaced) or c(luster) | verbs (* all) | short names | categories | subresources name[:verbs[:kind]]
# A subresource without verbs has get, patch and update; one without a kind has its parent's.
RESOURCES = """\
|bindings|Binding|n|create|||
|componentstatuses|ComponentStatus|c|get list|cs||
|configmaps|ConfigMap|n|*|cm||
|endpoints|Endpoints|n|*|ep||
|events|Event|n|*|ev||
|limitranges|LimitRange|n|*|limits||
|namespaces|Namespace|c|create delete get list patch update watch|ns||finalize:update status
|nodes|Node|c|*|no||proxy:create,delete,get,patch,update:NodeProxyOptions status
|persistentvolumeclaims|PersistentVolumeClaim|n|*|pvc||status
|persistentvolumes|PersistentVolume|c|*|pv||status
|pods|Pod|n|*|po|all|attach:create,get:PodAttachOptions binding:create:Binding ephemeralcontainers eviction:create:policy/v1/Eviction exec:create,get:PodExecOptions log:get portforward:create,get:PodPortForwardOptions proxy:create,delete,get,patch,update:PodProxyOptions resize status
|podtemplates|PodTemplate|n|*|||
|replicationcontrollers|ReplicationController|n|*|rc|all|scale::autoscaling/v1/Scale status
|resourcequotas|ResourceQuota|n|*|quota||status
|secrets|Secret|n|*|||
|serviceaccounts|ServiceAccount|n|*|sa||token:create:authentication.k8s.io/v1/TokenRequest
|services|Service|n|*|svc|all|proxy:create,delete,get,patch,update:ServiceProxyOptions status
apiregistration.k8s.io|apiservices|APIService|c|*||api-extensions|status
apps|controllerrevisions|ControllerRevision|n|*|||
apps|daemonsets|DaemonSet|n|*|ds|all|status
apps|deployments|Deployment|n|*|deploy|all|scale::autoscaling/v1/Scale status
apps|replicasets|ReplicaSet|n|*|rs|all|scale::autoscaling/v1/Scale status
apps|statefulsets|StatefulSet|n|*|sts|all|scale::autoscaling/v1/Scale status
events.k8s.io|events|Event|n|*|ev||
authentication.k8s.io|selfsubjectreviews|SelfSubjectReview|c|create|||
authentication.k8s.io|tokenreviews|TokenReview|c|create|||
authorization.k8s.io|localsubjectaccessreviews|LocalSubjectAccessReview|n|create|||
authorization.k8s.io|selfsubjectaccessreviews|SelfSubjectAccessReview|c|create|||
authorization.k8s.io|selfsubjectrulesreviews|SelfSubjectRulesReview|c|create|||
authorization.k8s.io|subjectaccessreviews|SubjectAccessReview|c|create|||
autoscaling|horizontalpodautoscalers|HorizontalPodAutoscaler|n|*|hpa|all|status
batch|cronjobs|CronJob|n|*|cj|all|status
batch|jobs|Job|n|*||all|status
certificates.k8s.io|certificatesigningrequests|CertificateSigningRequest|c|*|csr||approval status
networking.k8s.io|ingressclasses|IngressClass|c|*|||
networking.k8s.io|ingresses|Ingress|n|*|ing||status
networking.k8s.io|ipaddresses|IPAddress|c|*|ip||
networking.k8s.io|networkpolicies|NetworkPolicy|n|*|netpol||
networking.k8s.io|servicecidrs|ServiceCIDR|c|*|||status
policy|poddisruptionbudgets|PodDisruptionBudget|n|*|pdb||status
rbac.authorization.k8s.io|clusterrolebindings|ClusterRoleBinding|c|*|||
rbac.authorization.k8s.io|clusterroles|ClusterRole|c|*|||
rbac.authorization.k8s.io|rolebindings|RoleBinding|n|*|||
rbac.authorization.k8s.io|roles|Role|n|*|||
storage.k8s.io|csidrivers|CSIDriver|c|*|||
storage.k8s.io|csinodes|CSINode|c|*|||
storage.k8s.io|csistoragecapacities|CSIStorageCapacity|n|*|||
storage.k8s.io|storageclasses|StorageClass|c|*|sc||
storage.k8s.io|volumeattachments|VolumeAttachment|c|*|||status
storage.k8s.io|volumeattributesclasses|VolumeAttributesClass|c|*|vac||
admissionregistration.k8s.io|mutatingadmissionpolicies|MutatingAdmissionPolicy|c|*||api-extensions|
admissionregistration.k8s.io|mutatingadmissionpolicybindings|MutatingAdmissionPolicyBinding|c|*||api-extensions|
admissionregistration.k8s.io|mutatingwebhookconfigurations|MutatingWebhookConfiguration|c|*||api-extensions|
admissionregistration.k8s.io|validatingadmissionpolicies|ValidatingAdmissionPolicy|c|*||api-extensions|status
admissionregistration.k8s.io|validatingadmissionpolicybindings|ValidatingAdmissionPolicyBinding|c|*||api-extensions|
admissionregistration.k8s.io|validatingwebhookconfigurations|ValidatingWebhookConfiguration|c|*||api-extensions|
apiextensions.k8s.io|customresourcedefinitions|CustomResourceDefinition|c|*|crd crds|api-extensions|status
scheduling.k8s.io|priorityclasses|PriorityClass|c|*|pc||
coordination.k8s.io|leases|Lease|n|*|||
node.k8s.io|runtimeclasses|RuntimeClass|c|*|||
discovery.k8s.io|endpointslices|EndpointSlice|n|*|||
resource.k8s.io|deviceclasses|DeviceClass|c|*|||
resource.k8s.io|resourceclaims|ResourceClaim|n|*|||status
resource.k8s.io|resourceclaimtemplates|ResourceClaimTemplate|n|*|||
resource.k8s.io|resourceslices|ResourceSlice|c|*|||
flowcontrol.apiserver.k8s.io|flowschemas|FlowSchema|c|*|||status
flowcontrol.apiserver.k8s.io|prioritylevelconfigurations|PriorityLevelConfiguration|c|*|||status
"""

# group | plural | preferred version first
VERSIONS = {("autoscaling", "horizontalpodautoscalers"): ("v2", "v1")}

# Resources that show the objects of another group's resource.
STORED_AS = {("events.k8s.io", "events"): ("", "events")}

# Columns: name[/format][:type][*], * shown by -o wide only.
COLUMNS = """\
admissionregistration.k8s.io/mutatingadmissionpolicies Name|Mutations:integer|ParamKind|Age
admissionregistration.k8s.io/mutatingadmissionpolicybindings Name|PolicyName|ParamRef|Age
admissionregistration.k8s.io/mutatingwebhookconfigurations Name|Webhooks:integer|Age
admissionregistration.k8s.io/validatingadmissionpolicies Name|Validations:integer|ParamKind|Age
admissionregistration.k8s.io/validatingadmissionpolicybindings Name|PolicyName|ParamRef|Age
admissionregistration.k8s.io/validatingwebhookconfigurations Name|Webhooks:integer|Age
apiextensions.k8s.io/customresourcedefinitions Name|Created At:date
apiregistration.k8s.io/apiservices Name|Service|Available|Age
apps/controllerrevisions Name|Controller|Revision|Age
apps/daemonsets Name|Desired:integer|Current:integer|Ready:integer|Up-to-date:integer|Available:integer|Node Selector|Age|Containers*|Images*|Selector*
apps/deployments Name|Ready|Up-to-date|Available|Age|Containers*|Images*|Selector*
apps/replicasets Name|Desired:integer|Current:integer|Ready:integer|Age|Containers*|Images*|Selector*
apps/statefulsets Name|Ready|Age|Containers*|Images*
autoscaling/horizontalpodautoscalers Name|Reference|Targets|MinPods|MaxPods|Replicas|Age
batch/cronjobs Name|Schedule|Timezone|Suspend:boolean|Active:integer|Last Schedule|Age|Containers*|Images*|Selector*
batch/jobs Name|Status|Completions|Duration|Age|Containers*|Images*|Selector*
certificates.k8s.io/certificatesigningrequests Name|Age|SignerName|Requestor|RequestedDuration|Condition
coordination.k8s.io/leases Name|Holder|Age
discovery.k8s.io/endpointslices Name|AddressType|Ports|Endpoints|Age
events.k8s.io/events Last Seen|Type|Reason|Object|Subobject*|Source*|Message|First Seen*|Count*|Name*
flowcontrol.apiserver.k8s.io/flowschemas Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL
flowcontrol.apiserver.k8s.io/prioritylevelconfigurations Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age
networking.k8s.io/ingressclasses Name|Controller|Parameters|Age
networking.k8s.io/ingresses Name|Class|Hosts|Address|Ports|Age
networking.k8s.io/ipaddresses Name|ParentRef
networking.k8s.io/networkpolicies Name|Pod-Selector|Age
networking.k8s.io/servicecidrs Name|CIDRs|Age
node.k8s.io/runtimeclasses Name|Handler|Age
policy/poddisruptionbudgets Name|Min Available|Max Unavailable|Allowed Disruptions:integer|Age
rbac.authorization.k8s.io/clusterrolebindings Name|Role|Age|Users*|Groups*|ServiceAccounts*
rbac.authorization.k8s.io/clusterroles Name|Created At:date
rbac.authorization.k8s.io/rolebindings Name|Role|Age|Users*|Groups*|ServiceAccounts*
rbac.authorization.k8s.io/roles Name|Created At:date
resource.k8s.io/deviceclasses Name|Age
resource.k8s.io/resourceclaims Name|State|Age
resource.k8s.io/resourceclaimtemplates Name|Age
resource.k8s.io/resourceslices Name|Node|Driver|Pool|Age
scheduling.k8s.io/priorityclasses Name|Value:integer|Global-Default:boolean|Age|PreemptionPolicy
storage.k8s.io/csidrivers Name|AttachRequired:boolean|PodInfoOnMount:boolean|StorageCapacity:boolean|TokenRequests|RequiresRepublish:boolean|Modes|Age
storage.k8s.io/csinodes Name|Drivers:integer|Age
storage.k8s.io/csistoragecapacities Name|Created At:date
storage.k8s.io/storageclasses Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age
storage.k8s.io/volumeattachments Name|Attacher/name|PV|Node|Attached:boolean|Age
storage.k8s.io/volumeattributesclasses Name|DriverName|Age
/componentstatuses Name|Status|Message|Error
/configmaps Name|Data|Age
/endpoints Name|Endpoints|Age
/events Last Seen|Type|Reason|Object|Subobject*|Source*|Message|First Seen*|Count*|Name*
/limitranges Name|Created At:date
/namespaces Name|Status|Age
/nodes Name|Status|Roles|Age|Version|Internal-IP*|External-IP*|OS-Image*|Kernel-Version*|Container-Runtime*
/persistentvolumeclaims Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode*
/persistentvolumes Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode*
/pods Name|Ready|Status|Restarts|Age|IP*|Node*|Nominated Node*|Readiness Gates*
/podtemplates Name|Containers|Images|Pod Labels
/replicationcontrollers Name|Desired:integer|Current:integer|Ready:integer|Age|Containers*|Images*|Selector*
/resourcequotas Name|Request|Limit|Age
/secrets Name|Type|Data|Age
/serviceaccounts Name|Age
/services Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector*
"""
