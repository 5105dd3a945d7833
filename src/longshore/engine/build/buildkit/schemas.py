"""BuildKit's protobuf messages and services, as tables.

Source of names, numbers and types: moby/buildkit api/services/control, frontend/gateway/pb, session/*, solver/pb;
tonistiigi/fsutil types; google.rpc.Status; grpc.health.v1.
"""

from __future__ import annotations

from longshore.wire.protobuf import Schema

_COMMON = """
OpMetadata: 1 ignore_cache bool, 2 description {string:string}
Timestamp: 1 seconds int64, 2 nanos int32
Any: 1 type_url string, 2 value bytes
Status: 1 code int32, 2 message string, 3 details *Any
Definition: 1 def *bytes, 2 metadata {string:OpMetadata}, 3 Source Source
Source: 1 locations {string:Locations}, 2 infos *SourceInfo
Locations: 1 locations *Location
Location: 1 sourceIndex int32, 2 ranges *Range
Platform: 1 Architecture string, 2 OS string, 3 Variant string, 4 OSVersion string, 5 OSFeatures *string
BuildkitVersion: 1 package string, 2 version string, 3 revision string, 4 dockerfileVersion string
GCPolicy: 1 all bool, 2 keepDuration int64, 4 filters *string, 3 reservedSpace int64, 5 maxUsedSpace int64,
  6 minFreeSpace int64
WorkerRecord: 1 ID string, 2 Labels {string:string}, 3 platforms *Platform, 4 GCPolicy *GCPolicy,
  5 BuildkitVersion BuildkitVersion
Position: 1 line int32, 2 character int32
Range: 1 start Position, 2 end Position
SourceInfo: 1 filename string, 2 data bytes, 3 definition Definition, 4 language string
CacheOptionsEntry: 1 Type string, 2 Attrs {string:string}
"""

# What commands of definitions and of frontends' containers are told by.
_COMMANDS = """
Meta: 1 args *string, 2 env *string, 3 cwd string, 4 user string, 5 proxy_env ProxyEnv, 6 extraHosts *HostIP, 7 hostname string, 9 ulimit *Ulimit,
  10 cgroupParent string, 12 validExitCodes *int32
ProxyEnv: 1 http_proxy string, 2 https_proxy string, 3 ftp_proxy string, 4 no_proxy string, 5 all_proxy string
HostIP: 1 Host string, 2 IP string
Ulimit: 1 Name string, 2 Soft int64, 3 Hard int64
SecretEnv: 1 ID string, 2 name string, 3 optional bool
Mount: 1 input int64, 2 selector string, 3 dest string, 4 output int64, 5 readonly bool, 6 mountType int32,
  19 TmpfsOpt TmpfsOpt, 20 cacheOpt CacheOpt, 21 secretOpt FileOpt, 22 SSHOpt FileOpt, 23 resultID string
TmpfsOpt: 1 size int64
CacheOpt: 1 ID string, 2 sharing int32
FileOpt: 1 ID string, 2 uid uint32, 3 gid uint32, 4 mode uint32, 5 optional bool
SourceOp: 1 identifier string, 2 attrs {string:string}
"""

control = Schema(
    "moby.buildkit.v1",
    """
service Control: DiskUsage, Prune(PruneRequest)~UsageRecord, Solve, Status(StatusRequest)~StatusResponse,
  Session(~BytesMessage)~BytesMessage, ListWorkers, Info, ListenBuildHistory(BuildHistoryRequest)~BuildHistoryEvent,
  UpdateBuildHistory
"""
    + _COMMON
    + """
PruneRequest: 1 filter *string, 2 all bool, 3 keepDuration int64, 4 reservedSpace int64, 5 maxUsedSpace int64,
  6 minFreeSpace int64
DiskUsageRequest: 1 filter *string
DiskUsageResponse: 1 record *UsageRecord
UsageRecord: 1 ID string, 2 Mutable bool, 3 InUse bool, 4 Size int64, 5 Parent string, 6 CreatedAt Timestamp,
  7 LastUsedAt Timestamp, 8 UsageCount int64, 9 Description string, 10 RecordType string, 11 Shared bool, 12 Parents *string
CacheOptions: 1 ExportRefDeprecated string, 2 ImportRefsDeprecated *string, 3 ExportAttrsDeprecated {string:string},
  4 Exports *CacheOptionsEntry, 5 Imports *CacheOptionsEntry
Exporter: 1 Type string, 2 Attrs {string:string}
SolveRequest: 1 Ref string, 2 Definition Definition, 3 ExporterDeprecated string,
  4 ExporterAttrsDeprecated {string:string}, 5 Session string, 6 Frontend string, 7 FrontendAttrs {string:string},
  8 Cache CacheOptions, 9 Entitlements *string, 10 FrontendInputs {string:Definition}, 11 Internal bool,
  12 SourcePolicy SourcePolicy, 13 Exporters *Exporter, 14 EnableSessionExporter bool
SourcePolicy: 1 version int64, 2 rules *SourceRule
SourceRule: 1 action int32, 2 selector SourceSelector, 3 updates SourceUpdate
SourceSelector: 1 identifier string, 2 match_type int32, 3 constraints *SourceConstraint
SourceConstraint: 1 key string, 2 value string, 3 condition int32
SourceUpdate: 1 identifier string, 2 attrs {string:string}
SolveResponse: 1 ExporterResponse {string:string}
StatusRequest: 1 Ref string
StatusResponse: 1 vertexes *Vertex, 2 statuses *VertexStatus, 3 logs *VertexLog, 4 warnings *VertexWarning
Vertex: 1 digest string, 2 inputs *string, 3 name string, 4 cached bool, 5 started Timestamp, 6 completed Timestamp,
  7 error string
VertexStatus: 1 ID string, 2 vertex string, 3 name string, 4 current int64, 5 total int64, 6 timestamp Timestamp,
  7 started Timestamp, 8 completed Timestamp
VertexLog: 1 vertex string, 2 timestamp Timestamp, 3 stream int64, 4 msg bytes
VertexWarning: 1 vertex string, 2 level int64, 3 short bytes, 4 detail *bytes, 5 url string, 6 info SourceInfo, 7 ranges *Range
BytesMessage: 1 data bytes
ListWorkersRequest: 1 filter *string
ListWorkersResponse: 1 record *WorkerRecord
InfoRequest: 1 unused bytes
InfoResponse: 1 buildkitVersion BuildkitVersion
BuildHistoryRequest: 1 ActiveOnly bool, 2 Ref string, 3 EarlyExit bool, 4 Filter *string, 5 Limit int32
BuildHistoryEvent: 1 type int32, 2 record BuildHistoryRecord
BuildHistoryRecord: 1 Ref string, 2 Frontend string, 3 FrontendAttrs {string:string}, 4 Exporters *Exporter, 5 error Status,
  6 CreatedAt Timestamp, 7 CompletedAt Timestamp, 8 logs Descriptor, 9 ExporterResponse {string:string},
  10 Result BuildResultInfo, 11 Results {string:BuildResultInfo}, 12 Generation int32, 13 trace Descriptor, 14 pinned bool,
  15 numCachedSteps int32, 16 numTotalSteps int32, 17 numCompletedSteps int32, 18 externalError Descriptor,
  19 numWarnings int32
Descriptor: 1 media_type string, 2 digest string, 3 size int64, 5 annotations {string:string}
BuildResultInfo: 1 ResultDeprecated Descriptor, 2 Attestations *Descriptor, 3 Results {int64:Descriptor}
UpdateBuildHistoryRequest: 1 Ref string, 2 Pinned bool, 3 Delete bool, 4 Finalize bool
UpdateBuildHistoryResponse: 1 unused bytes
""",
)

bridge = Schema(
    "moby.buildkit.v1.frontend",
    """
service LLBBridge: ResolveImageConfig, Solve, ReadFile, ReadDir, StatFile, Evaluate, Ping(PingRequest)PongResponse,
  Return, Inputs, Warn, ResolveSourceMeta, NewContainer, ReleaseContainer, ExecProcess(~ExecMessage)~ExecMessage,
  ReadFileContainer(ReadFileRequest)ReadFileResponse, ReadDirContainer(ReadDirRequest)ReadDirResponse,
  StatFileContainer(StatFileRequest)StatFileResponse
"""
    + _COMMON
    + _COMMANDS
    + """
APICap: 1 ID string, 2 Enabled bool
Result: 1 refDeprecated string @result, 2 refsDeprecated RefMapDeprecated @result, 3 ref Ref @result, 4 refs RefMap @result,
  10 metadata {string:bytes}
RefMapDeprecated: 1 refs {string:string}
Ref: 1 id string, 2 def Definition
RefMap: 1 refs {string:Ref}
ReturnRequest: 1 result Result, 2 error Status
ReturnResponse: 1 unused bytes
InputsRequest: 1 unused bytes
InputsResponse: 1 Definitions {string:Definition}
ResolveImageConfigRequest: 1 Ref string, 2 Platform Platform, 3 ResolveMode string, 4 LogName string, 5 ResolverType int32,
  7 StoreID string
ResolveImageConfigResponse: 1 Digest string, 2 Config bytes, 3 Ref string
SolveRequest: 1 Definition Definition, 2 Frontend string, 3 FrontendOpt {string:string}, 5 allowResultReturn bool,
  6 allowResultArrayRef bool, 10 Final bool, 11 ExporterAttr bytes, 12 CacheImports *CacheOptionsEntry,
  13 FrontendInputs {string:Definition}, 14 Evaluate bool
SolveResponse: 1 ref string, 3 result Result
FileRange: 1 Offset int64, 2 Length int64
ReadFileRequest: 1 Ref string, 2 FilePath string, 3 Range FileRange, 4 MountIndex int32
ReadFileResponse: 1 Data bytes
ReadDirRequest: 1 Ref string, 2 DirPath string, 3 IncludePattern string, 4 MountIndex int32
Stat: 1 path string, 2 mode uint32, 3 uid uint32, 4 gid uint32, 5 size int64, 6 modTime int64, 7 linkname string,
  8 devmajor int64, 9 devminor int64, 10 xattrs {string:bytes}
ReadDirResponse: 1 entries *Stat
StatFileRequest: 1 Ref string, 2 Path string, 3 MountIndex int32
StatFileResponse: 1 stat Stat
EvaluateRequest: 1 Ref string
EvaluateResponse: 1 unused bytes
PingRequest: 1 unused bytes
PongResponse: 1 FrontendAPICaps *APICap, 2 LLBCaps *APICap, 3 Workers *WorkerRecord
WarnRequest: 1 digest string, 2 level int64, 3 short bytes, 4 detail *bytes, 5 url string, 6 info SourceInfo, 7 ranges *Range
WarnResponse: 1 unused bytes
ResolveSourceMetaRequest: 1 Source SourceOp, 2 Platform Platform, 3 LogName string, 4 ResolveMode string,
  6 Image ResolveSourceImageRequest
ResolveSourceImageRequest: 1 NoConfig bool
ResolveSourceMetaResponse: 1 Source SourceOp, 2 Image ResolveSourceImageResponse, 3 Git ResolveSourceGitResponse,
  4 HTTP ResolveSourceHTTPResponse
ResolveSourceImageResponse: 1 Digest string, 2 Config bytes
ResolveSourceGitResponse: 1 Checksum string, 2 Ref string, 3 CommitChecksum string
ResolveSourceHTTPResponse: 1 Checksum string, 2 Filename string, 3 LastModified Timestamp
NewContainerRequest: 1 ContainerID string, 2 Mounts *Mount, 3 Network int32, 4 platform Platform, 6 extraHosts *HostIP,
  7 hostname string
NewContainerResponse: 1 unused bytes
ReleaseContainerRequest: 1 ContainerID string
ReleaseContainerResponse: 1 unused bytes
ExecMessage: 1 ProcessID string, 2 Init InitMessage @Input, 3 File FdMessage @Input, 4 Resize ResizeMessage @Input,
  5 Started StartedMessage @Input, 6 Exit ExitMessage @Input, 7 Done DoneMessage @Input, 8 Signal SignalMessage @Input
InitMessage: 1 ContainerID string, 2 Meta Meta, 3 Fds *uint32, 4 Tty bool, 5 Security int32, 6 secretenv *SecretEnv
ExitMessage: 1 Code uint32, 2 Error Status
StartedMessage: 1 unused bytes
DoneMessage: 1 unused bytes
FdMessage: 1 Fd uint32, 2 EOF bool, 3 Data bytes
ResizeMessage: 1 Rows uint32, 2 Cols uint32
SignalMessage: 1 Name string
""",
)

# Operations of a definition (LLB).
pb = Schema(
    "pb",
    """
Op: 1 inputs *Input, 2 exec ExecOp @op, 3 source SourceOp @op, 4 file FileOp @op, 5 build BuildOp @op, 6 merge MergeOp @op,
  7 diff DiffOp @op, 10 platform Platform
Platform: 1 Architecture string, 2 OS string, 3 Variant string
Input: 1 digest string, 2 index int64
ExecOp: 1 meta Meta, 2 mounts *Mount, 3 network int32, 4 security int32, 5 secretenv *SecretEnv
"""
    + _COMMANDS
    + """
BuildOp: 1 builder int64, 2 inputs {string:BuildInput}, 4 attrs {string:string}
BuildInput: 1 input int64
FileOp: 2 actions *FileAction
FileAction: 1 input int64, 2 secondaryInput int64, 3 output int64, 4 copy CopyAction @action, 5 mkfile MkFileAction @action,
  6 mkdir MkDirAction @action, 7 rm RmAction @action, 8 symlink SymlinkAction @action
CopyAction: 1 src string, 2 dest string, 3 owner ChownOpt, 4 mode int32, 5 followSymlink bool, 6 dirCopyContents bool,
  7 attemptUnpackDockerCompatibility bool, 8 createDestPath bool, 9 allowWildcard bool, 10 allowEmptyWildcard bool,
  11 timestamp int64, 12 include_patterns *string, 13 exclude_patterns *string, 14 alwaysReplaceExistingDestPaths bool,
  15 modeStr string, 16 required_paths *string
MkFileAction: 1 path string, 2 mode int32, 3 data bytes, 4 owner ChownOpt, 5 timestamp int64
MkDirAction: 1 path string, 2 mode int32, 3 makeParents bool, 4 owner ChownOpt, 5 timestamp int64
RmAction: 1 path string, 2 allowNotFound bool, 3 allowWildcard bool
SymlinkAction: 1 oldpath string, 2 newpath string, 3 owner ChownOpt, 4 timestamp int64
ChownOpt: 1 user UserOpt, 2 group UserOpt
UserOpt: 1 byName NamedUser @user, 2 byID uint32 @user
NamedUser: 1 name string, 2 input int64
MergeOp: 1 inputs *MergeInput
MergeInput: 1 input int64
DiffOp: 1 lower MergeInput, 2 upper MergeInput
""",
)

filesync = Schema(
    "moby.filesync.v1",
    """
service FileSync: DiffCopy(~Packet)~Packet
service FileSend: DiffCopy(~BytesMessage)~BytesMessage
service Auth: Credentials
Stat: 1 path string, 2 mode uint32, 3 uid uint32, 4 gid uint32, 5 size int64, 6 modTime int64, 7 linkname string,
  8 devmajor int64, 9 devminor int64, 10 xattrs {string:bytes}
Packet: 1 type int32, 2 stat Stat, 3 ID uint32, 4 data bytes
BytesMessage: 1 data bytes
CredentialsRequest: 1 Host string
CredentialsResponse: 1 Username string, 2 Secret string
""",
)

secrets = Schema(
    "moby.buildkit.secrets.v1",
    """
service Secrets: GetSecret
GetSecretRequest: 1 ID string, 2 annotations {string:string}
GetSecretResponse: 1 data bytes
""",
)

content = Schema(
    "containerd.services.content.v1",
    """
service Content: Info, Read(ReadContentRequest)~ReadContentResponse, Write(~WriteContentRequest)~WriteContentResponse
Timestamp: 1 seconds int64, 2 nanos int32
Info: 1 digest string, 2 size int64, 3 created_at Timestamp, 4 updated_at Timestamp, 5 labels {string:string}
InfoRequest: 1 digest string
InfoResponse: 1 info Info
ReadContentRequest: 1 digest string, 2 offset int64, 3 size int64
ReadContentResponse: 1 offset int64, 2 data bytes
WriteContentRequest: 1 action int32, 2 ref string, 3 total int64, 4 expected string, 5 offset int64, 6 data bytes,
  7 labels {string:string}
WriteContentResponse: 1 action int32, 4 offset int64, 5 total int64, 6 digest string
""",
)

health = Schema(
    "grpc.health.v1",
    """
service Health: Check(HealthCheckRequest)HealthCheckResponse
HealthCheckRequest: 1 service string
HealthCheckResponse: 1 status int32
""",
)

upload = Schema(
    "moby.upload.v1",
    """
service Upload: Pull(~BytesMessage)~BytesMessage
BytesMessage: 1 data bytes
""",
)

ssh = Schema(
    "moby.sshforward.v1",
    """
service SSH: CheckAgent, ForwardAgent(~BytesMessage)~BytesMessage
BytesMessage: 1 data bytes
CheckAgentRequest: 1 ID string
CheckAgentResponse: 1 unused bytes
""",
)

# The packets of fsutil's protocol.
STAT, REQ, DATA, FIN, ERR = range(5)
