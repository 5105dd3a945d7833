"""CRI v1 (package runtime.v1): every message, enum and method of the container runtime interface, as a table.

Source of names, numbers and types: kubernetes/cri-api pkg/apis/runtime/v1/api.proto, releases 1.36 and 1.37.
"""

from __future__ import annotations

from longshore.wire.protobuf import Schema

SOCKET_PREFIX = "unix://"

cri = Schema(
    "runtime.v1",
    """
service RuntimeService: Version, RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox,
  StreamPodSandboxes(StreamPodSandboxesRequest)~StreamPodSandboxesResponse, CreateContainer, StartContainer,
  StopContainer, RemoveContainer, ListContainers, StreamContainers(StreamContainersRequest)~StreamContainersResponse,
  ContainerStatus, UpdateContainerResources, ReopenContainerLog, ExecSync, Exec, Attach, PortForward, ContainerStats,
  ListContainerStats, StreamContainerStats(StreamContainerStatsRequest)~StreamContainerStatsResponse, PodSandboxStats,
  ListPodSandboxStats, StreamPodSandboxStats(StreamPodSandboxStatsRequest)~StreamPodSandboxStatsResponse,
  UpdateRuntimeConfig, Status, CheckpointContainer, CheckpointPod, RestorePod,
  GetContainerEvents(GetEventsRequest)~ContainerEventResponse, ListMetricDescriptors, ListPodSandboxMetrics,
  StreamPodSandboxMetrics(StreamPodSandboxMetricsRequest)~StreamPodSandboxMetricsResponse, RuntimeConfig,
  UpdatePodSandboxResources
service ImageService: ListImages, StreamImages(StreamImagesRequest)~StreamImagesResponse, ImageStatus, PullImage,
  RemoveImage, ImageFsInfo

enum Protocol: TCP UDP SCTP
enum MountPropagation: PROPAGATION_PRIVATE PROPAGATION_HOST_TO_CONTAINER PROPAGATION_BIDIRECTIONAL
enum NamespaceMode: POD CONTAINER NODE TARGET
enum SupplementalGroupsPolicy: Merge Strict
enum ProfileType: RuntimeDefault Unconfined Localhost
enum PodSandboxState: SANDBOX_READY SANDBOX_NOTREADY
enum Signal: SIGNAL_RUNTIME_DEFAULT SIGNAL_SIGABRT SIGNAL_SIGALRM SIGNAL_SIGBUS SIGNAL_SIGCHLD SIGNAL_SIGCLD
  SIGNAL_SIGCONT SIGNAL_SIGFPE SIGNAL_SIGHUP SIGNAL_SIGILL SIGNAL_SIGINT SIGNAL_SIGIO SIGNAL_SIGIOT SIGNAL_SIGKILL
  SIGNAL_SIGPIPE SIGNAL_SIGPOLL SIGNAL_SIGPROF SIGNAL_SIGPWR SIGNAL_SIGQUIT SIGNAL_SIGSEGV SIGNAL_SIGSTKFLT
  SIGNAL_SIGSTOP SIGNAL_SIGSYS SIGNAL_SIGTERM SIGNAL_SIGTRAP SIGNAL_SIGTSTP SIGNAL_SIGTTIN SIGNAL_SIGTTOU
  SIGNAL_SIGURG SIGNAL_SIGUSR1 SIGNAL_SIGUSR2 SIGNAL_SIGVTALRM SIGNAL_SIGWINCH SIGNAL_SIGXCPU SIGNAL_SIGXFSZ
  SIGNAL_SIGRTMIN SIGNAL_SIGRTMINPLUS1 SIGNAL_SIGRTMINPLUS2 SIGNAL_SIGRTMINPLUS3 SIGNAL_SIGRTMINPLUS4
  SIGNAL_SIGRTMINPLUS5 SIGNAL_SIGRTMINPLUS6 SIGNAL_SIGRTMINPLUS7 SIGNAL_SIGRTMINPLUS8 SIGNAL_SIGRTMINPLUS9
  SIGNAL_SIGRTMINPLUS10 SIGNAL_SIGRTMINPLUS11 SIGNAL_SIGRTMINPLUS12 SIGNAL_SIGRTMINPLUS13 SIGNAL_SIGRTMINPLUS14
  SIGNAL_SIGRTMINPLUS15 SIGNAL_SIGRTMAXMINUS14 SIGNAL_SIGRTMAXMINUS13 SIGNAL_SIGRTMAXMINUS12 SIGNAL_SIGRTMAXMINUS11
  SIGNAL_SIGRTMAXMINUS10 SIGNAL_SIGRTMAXMINUS9 SIGNAL_SIGRTMAXMINUS8 SIGNAL_SIGRTMAXMINUS7 SIGNAL_SIGRTMAXMINUS6
  SIGNAL_SIGRTMAXMINUS5 SIGNAL_SIGRTMAXMINUS4 SIGNAL_SIGRTMAXMINUS3 SIGNAL_SIGRTMAXMINUS2 SIGNAL_SIGRTMAXMINUS1
  SIGNAL_SIGRTMAX
enum ContainerState: CONTAINER_CREATED CONTAINER_RUNNING CONTAINER_EXITED CONTAINER_UNKNOWN
enum ContainerEventType: CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT
  CONTAINER_DELETED_EVENT
enum MetricType: COUNTER GAUGE
enum CgroupDriver: SYSTEMD CGROUPFS

VersionRequest: 1 version string
VersionResponse: 1 version string, 2 runtime_name string, 3 runtime_version string, 4 runtime_api_version string
DNSConfig: 1 servers *string, 2 searches *string, 3 options *string
PortMapping: 1 protocol Protocol, 2 container_port int32, 3 host_port int32, 4 host_ip string
Mount: 1 container_path string, 2 host_path string, 3 readonly bool, 4 selinux_relabel bool, 5 propagation
  MountPropagation, 6 uidMappings *IDMapping, 7 gidMappings *IDMapping, 8 recursive_read_only bool, 9 image ImageSpec,
  10 image_sub_path string, 11 mount_options *string
IDMapping: 1 host_id uint32, 2 container_id uint32, 3 length uint32
UserNamespace: 1 mode NamespaceMode, 2 uids *IDMapping, 3 gids *IDMapping
NamespaceOption: 1 network NamespaceMode, 2 pid NamespaceMode, 3 ipc NamespaceMode, 4 target_id string, 5
  userns_options UserNamespace
Int64Value: 1 value int64
LinuxSandboxSecurityContext: 1 namespace_options NamespaceOption, 2 selinux_options SELinuxOption, 3 run_as_user
  Int64Value, 8 run_as_group Int64Value, 4 readonly_rootfs bool, 5 supplemental_groups *int64, 11
  supplemental_groups_policy SupplementalGroupsPolicy, 6 privileged bool, 9 seccomp SecurityProfile, 10 apparmor
  SecurityProfile, 7 seccomp_profile_path string
SecurityProfile: 1 profile_type ProfileType, 2 localhost_ref string
LinuxPodSandboxConfig: 1 cgroup_parent string, 2 security_context LinuxSandboxSecurityContext, 3 sysctls
  {string:string}, 4 overhead LinuxContainerResources, 5 resources LinuxContainerResources
PodSandboxMetadata: 1 name string, 2 uid string, 3 namespace string, 4 attempt uint32
PodSandboxConfig: 1 metadata PodSandboxMetadata, 2 hostname string, 3 log_directory string, 4 dns_config DNSConfig, 5
  port_mappings *PortMapping, 6 labels {string:string}, 7 annotations {string:string}, 8 linux LinuxPodSandboxConfig,
  9 windows WindowsPodSandboxConfig
RunPodSandboxRequest: 1 config PodSandboxConfig, 2 runtime_handler string
RunPodSandboxResponse: 1 pod_sandbox_id string
StopPodSandboxRequest: 1 pod_sandbox_id string
StopPodSandboxResponse:
RemovePodSandboxRequest: 1 pod_sandbox_id string
RemovePodSandboxResponse:
PodSandboxStatusRequest: 1 pod_sandbox_id string, 2 verbose bool
PodIP: 1 ip string
PodSandboxNetworkStatus: 1 ip string, 2 additional_ips *PodIP
Namespace: 2 options NamespaceOption
LinuxPodSandboxStatus: 1 namespaces Namespace
PodSandboxStatus: 1 id string, 2 metadata PodSandboxMetadata, 3 state PodSandboxState, 4 created_at int64, 5 network
  PodSandboxNetworkStatus, 6 linux LinuxPodSandboxStatus, 7 labels {string:string}, 8 annotations {string:string}, 9
  runtime_handler string
PodSandboxStatusResponse: 1 status PodSandboxStatus, 2 info {string:string}, 3 containers_statuses *ContainerStatus, 4
  timestamp int64
PodSandboxStateValue: 1 state PodSandboxState
PodSandboxFilter: 1 id string, 2 state PodSandboxStateValue, 3 label_selector {string:string}
ListPodSandboxRequest: 1 filter PodSandboxFilter
PodSandbox: 1 id string, 2 metadata PodSandboxMetadata, 3 state PodSandboxState, 4 created_at int64, 5 labels
  {string:string}, 6 annotations {string:string}, 7 runtime_handler string
ListPodSandboxResponse: 1 items *PodSandbox
StreamPodSandboxesRequest: 1 filter PodSandboxFilter
StreamPodSandboxesResponse: 1 pod_sandboxes *PodSandbox
PodSandboxStatsRequest: 1 pod_sandbox_id string
PodSandboxStatsResponse: 1 stats PodSandboxStats
PodSandboxStatsFilter: 1 id string, 2 label_selector {string:string}
ListPodSandboxStatsRequest: 1 filter PodSandboxStatsFilter
ListPodSandboxStatsResponse: 1 stats *PodSandboxStats
StreamPodSandboxStatsRequest: 1 filter PodSandboxStatsFilter
StreamPodSandboxStatsResponse: 1 pod_sandbox_stats *PodSandboxStats
PodSandboxAttributes: 1 id string, 2 metadata PodSandboxMetadata, 3 labels {string:string}, 4 annotations
  {string:string}
PodSandboxStats: 1 attributes PodSandboxAttributes, 2 linux LinuxPodSandboxStats, 3 windows WindowsPodSandboxStats
LinuxPodSandboxStats: 1 cpu CpuUsage, 2 memory MemoryUsage, 3 network NetworkUsage, 4 process ProcessUsage, 5
  containers *ContainerStats, 6 io IoUsage
WindowsPodSandboxStats: 1 cpu WindowsCpuUsage, 2 memory WindowsMemoryUsage, 3 network WindowsNetworkUsage, 4 process
  WindowsProcessUsage, 5 containers *WindowsContainerStats
NetworkUsage: 1 timestamp int64, 2 default_interface NetworkInterfaceUsage, 3 interfaces *NetworkInterfaceUsage
WindowsNetworkUsage: 1 timestamp int64, 2 default_interface WindowsNetworkInterfaceUsage, 3 interfaces
  *WindowsNetworkInterfaceUsage
NetworkInterfaceUsage: 1 name string, 2 rx_bytes UInt64Value, 3 rx_errors UInt64Value, 4 tx_bytes UInt64Value, 5
  tx_errors UInt64Value
WindowsNetworkInterfaceUsage: 1 name string, 2 rx_bytes UInt64Value, 3 rx_packets_dropped UInt64Value, 4 tx_bytes
  UInt64Value, 5 tx_packets_dropped UInt64Value
ProcessUsage: 1 timestamp int64, 2 process_count UInt64Value
WindowsProcessUsage: 1 timestamp int64, 2 process_count UInt64Value
ImageSpec: 1 image string, 2 annotations {string:string}, 18 user_specified_image string, 19 runtime_handler string,
  20 image_ref string
KeyValue: 1 key string, 2 value bytes
LinuxContainerResources: 1 cpu_period int64, 2 cpu_quota int64, 3 cpu_shares int64, 4 memory_limit_in_bytes int64, 5
  oom_score_adj int64, 6 cpuset_cpus string, 7 cpuset_mems string, 8 hugepage_limits *HugepageLimit, 9 unified
  {string:string}, 10 memory_swap_limit_in_bytes int64
HugepageLimit: 1 page_size string, 2 limit uint64
SELinuxOption: 1 user string, 2 role string, 3 type string, 4 level string
Capability: 1 add_capabilities *string, 2 drop_capabilities *string, 3 add_ambient_capabilities *string
LinuxContainerSecurityContext: 1 capabilities Capability, 2 privileged bool, 3 namespace_options NamespaceOption, 4
  selinux_options SELinuxOption, 5 run_as_user Int64Value, 12 run_as_group Int64Value, 6 run_as_username string, 7
  readonly_rootfs bool, 8 supplemental_groups *int64, 17 supplemental_groups_policy SupplementalGroupsPolicy, 11
  no_new_privs bool, 13 masked_paths *string, 14 readonly_paths *string, 15 seccomp SecurityProfile, 16 apparmor
  SecurityProfile, 9 apparmor_profile string, 10 seccomp_profile_path string
LinuxContainerConfig: 1 resources LinuxContainerResources, 2 security_context LinuxContainerSecurityContext
LinuxContainerUser: 1 uid int64, 2 gid int64, 3 supplemental_groups *int64
WindowsNamespaceOption: 1 network NamespaceMode
WindowsSandboxSecurityContext: 1 run_as_username string, 2 credential_spec string, 3 host_process bool, 4
  namespace_options WindowsNamespaceOption
WindowsPodSandboxConfig: 1 security_context WindowsSandboxSecurityContext
WindowsContainerSecurityContext: 1 run_as_username string, 2 credential_spec string, 3 host_process bool
WindowsContainerConfig: 1 resources WindowsContainerResources, 2 security_context WindowsContainerSecurityContext
WindowsContainerResources: 1 cpu_shares int64, 2 cpu_count int64, 3 cpu_maximum int64, 4 memory_limit_in_bytes int64,
  5 rootfs_size_in_bytes int64, 6 affinity_cpus *WindowsCpuGroupAffinity
WindowsCpuGroupAffinity: 1 cpu_mask uint64, 2 cpu_group uint32
ContainerMetadata: 1 name string, 2 attempt uint32
Device: 1 container_path string, 2 host_path string, 3 permissions string
CDIDevice: 1 name string
ContainerConfig: 1 metadata ContainerMetadata, 2 image ImageSpec, 3 command *string, 4 args *string, 5 working_dir
  string, 6 envs *KeyValue, 7 mounts *Mount, 8 devices *Device, 9 labels {string:string}, 10 annotations
  {string:string}, 11 log_path string, 12 stdin bool, 13 stdin_once bool, 14 tty bool, 15 linux LinuxContainerConfig,
  16 windows WindowsContainerConfig, 17 CDI_devices *CDIDevice, 18 stop_signal Signal
CreateContainerRequest: 1 pod_sandbox_id string, 2 config ContainerConfig, 3 sandbox_config PodSandboxConfig
CreateContainerResponse: 1 container_id string
StartContainerRequest: 1 container_id string
StartContainerResponse:
StopContainerRequest: 1 container_id string, 2 timeout int64
StopContainerResponse:
RemoveContainerRequest: 1 container_id string
RemoveContainerResponse:
ContainerStateValue: 1 state ContainerState
ContainerFilter: 1 id string, 2 state ContainerStateValue, 3 pod_sandbox_id string, 4 label_selector {string:string}
ListContainersRequest: 1 filter ContainerFilter
Container: 1 id string, 2 pod_sandbox_id string, 3 metadata ContainerMetadata, 4 image ImageSpec, 5 image_ref string,
  6 state ContainerState, 7 created_at int64, 8 labels {string:string}, 9 annotations {string:string}, 10 image_id
  string
ListContainersResponse: 1 containers *Container
StreamContainersRequest: 1 filter ContainerFilter
StreamContainersResponse: 1 containers *Container
ContainerStatusRequest: 1 container_id string, 2 verbose bool
ContainerStatus: 1 id string, 2 metadata ContainerMetadata, 3 state ContainerState, 4 created_at int64, 5 started_at
  int64, 6 finished_at int64, 7 exit_code int32, 8 image ImageSpec, 9 image_ref string, 10 reason string, 11 message
  string, 12 labels {string:string}, 13 annotations {string:string}, 14 mounts *Mount, 15 log_path string, 16
  resources ContainerResources, 17 image_id string, 18 user ContainerUser, 19 stop_signal Signal
ContainerStatusResponse: 1 status ContainerStatus, 2 info {string:string}
ContainerResources: 1 linux LinuxContainerResources, 2 windows WindowsContainerResources
ContainerUser: 1 linux LinuxContainerUser
UpdateContainerResourcesRequest: 1 container_id string, 2 linux LinuxContainerResources, 3 windows
  WindowsContainerResources, 4 annotations {string:string}
UpdateContainerResourcesResponse:
ExecSyncRequest: 1 container_id string, 2 cmd *string, 3 timeout int64
ExecSyncResponse: 1 stdout bytes, 2 stderr bytes, 3 exit_code int32
ExecRequest: 1 container_id string, 2 cmd *string, 3 tty bool, 4 stdin bool, 5 stdout bool, 6 stderr bool
ExecResponse: 1 url string
AttachRequest: 1 container_id string, 2 stdin bool, 3 tty bool, 4 stdout bool, 5 stderr bool
AttachResponse: 1 url string
PortForwardRequest: 1 pod_sandbox_id string, 2 port *int32
PortForwardResponse: 1 url string
ImageFilter: 1 image ImageSpec
ListImagesRequest: 1 filter ImageFilter
Image: 1 id string, 2 repo_tags *string, 3 repo_digests *string, 4 size uint64, 5 uid Int64Value, 6 username string, 7
  spec ImageSpec, 8 pinned bool
ListImagesResponse: 1 images *Image
StreamImagesRequest: 1 filter ImageFilter
StreamImagesResponse: 1 images *Image
ImageStatusRequest: 1 image ImageSpec, 2 verbose bool
ImageStatusResponse: 1 image Image, 2 info {string:string}
AuthConfig: 1 username string, 2 password string, 3 auth string, 4 server_address string, 5 identity_token string, 6
  registry_token string
PullImageRequest: 1 image ImageSpec, 2 auth AuthConfig, 3 sandbox_config PodSandboxConfig
PullImageResponse: 1 image_ref string
RemoveImageRequest: 1 image ImageSpec
RemoveImageResponse:
NetworkConfig: 1 pod_cidr string
RuntimeConfig: 1 network_config NetworkConfig
UpdateRuntimeConfigRequest: 1 runtime_config RuntimeConfig
UpdateRuntimeConfigResponse:
RuntimeCondition: 1 type string, 2 status bool, 3 reason string, 4 message string
RuntimeStatus: 1 conditions *RuntimeCondition
StatusRequest: 1 verbose bool
RuntimeHandlerFeatures: 1 recursive_read_only_mounts bool, 2 user_namespaces bool
RuntimeHandler: 1 name string, 2 features RuntimeHandlerFeatures
RuntimeFeatures: 1 supplemental_groups_policy bool, 2 user_namespaces_host_network bool, 3 mount_options bool
StatusResponse: 1 status RuntimeStatus, 2 info {string:string}, 3 runtime_handlers *RuntimeHandler, 4 features
  RuntimeFeatures
ImageFsInfoRequest:
UInt64Value: 1 value uint64
FilesystemIdentifier: 1 mountpoint string
FilesystemUsage: 1 timestamp int64, 2 fs_id FilesystemIdentifier, 3 used_bytes UInt64Value, 4 inodes_used UInt64Value
WindowsFilesystemUsage: 1 timestamp int64, 2 fs_id FilesystemIdentifier, 3 used_bytes UInt64Value
ImageFsInfoResponse: 1 image_filesystems *FilesystemUsage, 2 container_filesystems *FilesystemUsage
ContainerStatsRequest: 1 container_id string
ContainerStatsResponse: 1 stats ContainerStats
ListContainerStatsRequest: 1 filter ContainerStatsFilter
ContainerStatsFilter: 1 id string, 2 pod_sandbox_id string, 3 label_selector {string:string}
ListContainerStatsResponse: 1 stats *ContainerStats
StreamContainerStatsRequest: 1 filter ContainerStatsFilter
StreamContainerStatsResponse: 1 container_stats *ContainerStats
ContainerAttributes: 1 id string, 2 metadata ContainerMetadata, 3 labels {string:string}, 4 annotations
  {string:string}
ContainerStats: 1 attributes ContainerAttributes, 2 cpu CpuUsage, 3 memory MemoryUsage, 4 writable_layer
  FilesystemUsage, 5 swap SwapUsage, 6 io IoUsage
WindowsContainerStats: 1 attributes ContainerAttributes, 2 cpu WindowsCpuUsage, 3 memory WindowsMemoryUsage, 4
  writable_layer WindowsFilesystemUsage
PsiStats: 1 Full PsiData, 2 Some PsiData
PsiData: 1 Total uint64, 2 Avg10 double, 3 Avg60 double, 4 Avg300 double
CpuUsage: 1 timestamp int64, 2 usage_core_nano_seconds UInt64Value, 3 usage_nano_cores UInt64Value, 4 psi PsiStats
WindowsCpuUsage: 1 timestamp int64, 2 usage_core_nano_seconds UInt64Value, 3 usage_nano_cores UInt64Value
MemoryUsage: 1 timestamp int64, 2 working_set_bytes UInt64Value, 3 available_bytes UInt64Value, 4 usage_bytes
  UInt64Value, 5 rss_bytes UInt64Value, 6 page_faults UInt64Value, 7 major_page_faults UInt64Value, 8 psi PsiStats
IoUsage: 1 timestamp int64, 2 psi PsiStats
SwapUsage: 1 timestamp int64, 2 swap_available_bytes UInt64Value, 3 swap_usage_bytes UInt64Value
WindowsMemoryUsage: 1 timestamp int64, 2 working_set_bytes UInt64Value, 3 available_bytes UInt64Value, 4 page_faults
  UInt64Value, 5 commit_memory_bytes UInt64Value
ReopenContainerLogRequest: 1 container_id string
ReopenContainerLogResponse:
CheckpointContainerRequest: 1 container_id string, 2 location string, 3 timeout int64
CheckpointContainerResponse:
CheckpointPodRequest: 1 pod_sandbox_id string, 2 output_path string, 3 container_ids *string, 4 options
  {string:string}
CheckpointPodResponse:
RestorePodRequest: 1 checkpoint_path string, 2 config PodSandboxConfig, 3 runtime_handler string, 4 options
  {string:string}, 5 container_configs *ContainerConfig
RestoredContainer: 1 name string, 2 container_id string
RestorePodResponse: 1 pod_sandbox_id string, 2 restored_containers *RestoredContainer
GetEventsRequest:
ContainerEventResponse: 1 container_id string, 2 container_event_type ContainerEventType, 3 created_at int64, 4
  pod_sandbox_status PodSandboxStatus, 5 containers_statuses *ContainerStatus
ListMetricDescriptorsRequest:
ListMetricDescriptorsResponse: 1 descriptors *MetricDescriptor
MetricDescriptor: 1 name string, 2 help string, 3 label_keys *string
ListPodSandboxMetricsRequest:
ListPodSandboxMetricsResponse: 1 pod_metrics *PodSandboxMetrics
StreamPodSandboxMetricsRequest:
StreamPodSandboxMetricsResponse: 1 pod_sandbox_metrics *PodSandboxMetrics
PodSandboxMetrics: 1 pod_sandbox_id string, 2 metrics *Metric, 3 container_metrics *ContainerMetrics
ContainerMetrics: 1 container_id string, 2 metrics *Metric
Metric: 1 name string, 2 timestamp int64, 3 metric_type MetricType, 4 label_values *string, 5 value UInt64Value
RuntimeConfigRequest:
RuntimeConfigResponse: 1 linux LinuxRuntimeConfiguration
LinuxRuntimeConfiguration: 1 cgroup_driver CgroupDriver
UpdatePodSandboxResourcesRequest: 1 pod_sandbox_id string, 2 overhead LinuxContainerResources, 3 resources
  LinuxContainerResources
UpdatePodSandboxResourcesResponse:
""",
)
