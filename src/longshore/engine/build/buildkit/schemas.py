"""BuildKit's protobuf messages and services, as tables.

Source of names, numbers and types: moby/buildkit api/services/control, frontend/gateway/pb, session/*, solver/pb;
tonistiigi/fsutil types; google.rpc.Status; grpc.health.v1.
"""

from __future__ import annotations

from longshore.wire.protobuf import Schema

_COMMON = """
Timestamp: 1 seconds int64, 2 nanos int32
Any: 1 type_url string, 2 value bytes
Status: 1 code int32, 2 message string, 3 details *Any
Definition: 1 def *bytes
Platform: 1 Architecture string, 2 OS string, 3 Variant string, 4 OSVersion string, 5 OSFeatures *string
BuildkitVersion: 1 package string, 2 version string, 3 revision string, 4 dockerfileVersion string
GCPolicy: 1 all bool, 2 keepDuration int64, 4 filters *string, 3 reservedSpace int64
WorkerRecord: 1 ID string, 2 Labels {string:string}, 3 platforms *Platform, 4 GCPolicy *GCPolicy,
  5 BuildkitVersion BuildkitVersion
Position: 1 line int32, 2 character int32
Range: 1 start Position, 2 end Position
SourceInfo: 1 filename string, 2 data bytes, 3 definition Definition, 4 language string
CacheOptionsEntry: 1 Type string, 2 Attrs {string:string}
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
PruneRequest: 1 filter *string, 2 all bool, 3 keepDuration int64, 4 reservedSpace int64
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
  13 Exporters *Exporter, 14 EnableSessionExporter bool
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
BuildHistoryRequest: 1 ActiveOnly bool, 2 Ref string, 3 EarlyExit bool
BuildHistoryEvent: 1 type int32, 2 record BuildHistoryRecord
BuildHistoryRecord: 1 Ref string, 2 Frontend string
UpdateBuildHistoryRequest: 1 Ref string, 2 Pinned bool, 3 Delete bool, 4 Finalize bool
UpdateBuildHistoryResponse: 1 unused bytes
""",
)

bridge = Schema(
    "moby.buildkit.v1.frontend",
    """
service LLBBridge: ResolveImageConfig, Solve, ReadFile, ReadDir, StatFile, Evaluate, Ping(PingRequest)PongResponse,
  Return, Inputs, Warn
"""
    + _COMMON
    + """
APICap: 1 ID string, 2 Enabled bool
Result: 1 refDeprecated string @result, 3 ref Ref @result, 4 refs RefMap @result, 10 metadata {string:bytes}
Ref: 1 id string, 2 def Definition
RefMap: 1 refs {string:Ref}
ReturnRequest: 1 result Result, 2 error Status
ReturnResponse: 1 unused bytes
InputsRequest: 1 unused bytes
InputsResponse: 1 Definitions {string:Definition}
ResolveImageConfigRequest: 1 Ref string, 2 Platform Platform, 3 ResolveMode string, 4 LogName string
ResolveImageConfigResponse: 1 Digest string, 2 Config bytes, 3 Ref string
SolveRequest: 1 Definition Definition, 2 Frontend string, 3 FrontendOpt {string:string}, 5 allowResultReturn bool,
  6 allowResultArrayRef bool, 10 Final bool, 11 ExporterAttr bytes, 12 CacheImports *CacheOptionsEntry,
  13 FrontendInputs {string:Definition}, 14 Evaluate bool
SolveResponse: 1 ref string, 3 result Result
FileRange: 1 Offset int64, 2 Length int64
ReadFileRequest: 1 Ref string, 2 FilePath string, 3 Range FileRange
ReadFileResponse: 1 Data bytes
ReadDirRequest: 1 Ref string, 2 DirPath string, 3 IncludePattern string
Stat: 1 path string, 2 mode uint32, 3 uid uint32, 4 gid uint32, 5 size int64, 6 modTime int64, 7 linkname string,
  8 devmajor int64, 9 devminor int64, 10 xattrs {string:bytes}
ReadDirResponse: 1 entries *Stat
StatFileRequest: 1 Ref string, 2 Path string
StatFileResponse: 1 stat Stat
EvaluateRequest: 1 Ref string
EvaluateResponse: 1 unused bytes
PingRequest: 1 unused bytes
PongResponse: 1 FrontendAPICaps *APICap, 2 LLBCaps *APICap, 3 Workers *WorkerRecord
WarnRequest: 1 digest string, 2 level int64, 3 short bytes, 4 detail *bytes, 5 url string
WarnResponse: 1 unused bytes
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
