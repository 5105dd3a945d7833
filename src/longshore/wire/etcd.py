"""etcd v3 (package etcdserverpb): messages and methods of its gRPC services, as a table.

Users and roles are not managed over it here; their methods are listed (with empty messages) so that they are refused in words.
Enums are plain numbers here (on the wire they are the same); their values are the constants below. Source of names, numbers
and types: etcd's api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto, release 3.5.
"""

from __future__ import annotations

from longshore.wire.protobuf import Schema

SORT_ORDERS = ("none", "ascend", "descend")
SORT_TARGETS = ("key", "version", "create", "mod", "value")
COMPARE_RESULTS = ("=", ">", "<", "!=")
COMPARE_TARGETS = ("version", "create", "mod", "value", "lease")
EVENT_PUT, EVENT_DELETE = 0, 1
FILTER_NOPUT, FILTER_NODELETE = 0, 1

etcd = Schema(
    "etcdserverpb",
    """
service KV: Range, Put, DeleteRange, Txn, Compact(CompactionRequest)CompactionResponse
service Watch: Watch(~WatchRequest)~WatchResponse
service Lease: LeaseGrant, LeaseRevoke, LeaseKeepAlive(~LeaseKeepAliveRequest)~LeaseKeepAliveResponse,
  LeaseTimeToLive, LeaseLeases
service Cluster: MemberAdd, MemberRemove, MemberUpdate, MemberList, MemberPromote
service Maintenance: Alarm, Status, Defragment, Hash, HashKV, Snapshot(SnapshotRequest)~SnapshotResponse, MoveLeader,
  Downgrade
service Auth: AuthStatus, Authenticate, AuthEnable(AuthRequest)AuthResponse, AuthDisable(AuthRequest)AuthResponse,
  UserAdd(AuthRequest)AuthResponse, UserGet(AuthRequest)AuthResponse, UserList(AuthRequest)AuthResponse,
  UserDelete(AuthRequest)AuthResponse, UserChangePassword(AuthRequest)AuthResponse,
  UserGrantRole(AuthRequest)AuthResponse, UserRevokeRole(AuthRequest)AuthResponse, RoleAdd(AuthRequest)AuthResponse,
  RoleGet(AuthRequest)AuthResponse, RoleList(AuthRequest)AuthResponse, RoleDelete(AuthRequest)AuthResponse,
  RoleGrantPermission(AuthRequest)AuthResponse, RoleRevokePermission(AuthRequest)AuthResponse

KeyValue: 1 key bytes, 2 create_revision int64, 3 mod_revision int64, 4 version int64, 5 value bytes, 6 lease int64
Event: 1 type int32, 2 kv KeyValue, 3 prev_kv KeyValue
ResponseHeader: 1 cluster_id uint64, 2 member_id uint64, 3 revision int64, 4 raft_term uint64
RangeRequest: 1 key bytes, 2 range_end bytes, 3 limit int64, 4 revision int64, 5 sort_order int32, 6 sort_target int32,
  7 serializable bool, 8 keys_only bool, 9 count_only bool, 10 min_mod_revision int64, 11 max_mod_revision int64,
  12 min_create_revision int64, 13 max_create_revision int64
RangeResponse: 1 header ResponseHeader, 2 kvs *KeyValue, 3 more bool, 4 count int64
PutRequest: 1 key bytes, 2 value bytes, 3 lease int64, 4 prev_kv bool, 5 ignore_value bool, 6 ignore_lease bool
PutResponse: 1 header ResponseHeader, 2 prev_kv KeyValue
DeleteRangeRequest: 1 key bytes, 2 range_end bytes, 3 prev_kv bool
DeleteRangeResponse: 1 header ResponseHeader, 2 deleted int64, 3 prev_kvs *KeyValue
RequestOp: 1 request_range RangeRequest @request, 2 request_put PutRequest @request,
  3 request_delete_range DeleteRangeRequest @request, 4 request_txn TxnRequest @request
ResponseOp: 1 response_range RangeResponse @response, 2 response_put PutResponse @response,
  3 response_delete_range DeleteRangeResponse @response, 4 response_txn TxnResponse @response
Compare: 1 result int32, 2 target int32, 3 key bytes, 4 version int64 @target_union,
  5 create_revision int64 @target_union, 6 mod_revision int64 @target_union, 7 value bytes @target_union,
  8 lease int64 @target_union, 64 range_end bytes
TxnRequest: 1 compare *Compare, 2 success *RequestOp, 3 failure *RequestOp
TxnResponse: 1 header ResponseHeader, 2 succeeded bool, 3 responses *ResponseOp
CompactionRequest: 1 revision int64, 2 physical bool
CompactionResponse: 1 header ResponseHeader
WatchRequest: 1 create_request WatchCreateRequest @request_union, 2 cancel_request WatchCancelRequest @request_union,
  3 progress_request WatchProgressRequest @request_union
WatchCreateRequest: 1 key bytes, 2 range_end bytes, 3 start_revision int64, 4 progress_notify bool, 5 filters *int32,
  6 prev_kv bool, 7 watch_id int64, 8 fragment bool
WatchCancelRequest: 1 watch_id int64
WatchProgressRequest:
WatchResponse: 1 header ResponseHeader, 2 watch_id int64, 3 created bool, 4 canceled bool, 5 compact_revision int64,
  6 cancel_reason string, 7 fragment bool, 11 events *Event
LeaseGrantRequest: 1 TTL int64, 2 ID int64
LeaseGrantResponse: 1 header ResponseHeader, 2 ID int64, 3 TTL int64, 4 error string
LeaseRevokeRequest: 1 ID int64
LeaseRevokeResponse: 1 header ResponseHeader
LeaseKeepAliveRequest: 1 ID int64
LeaseKeepAliveResponse: 1 header ResponseHeader, 2 ID int64, 3 TTL int64
LeaseTimeToLiveRequest: 1 ID int64, 2 keys bool
LeaseTimeToLiveResponse: 1 header ResponseHeader, 2 ID int64, 3 TTL int64, 4 grantedTTL int64, 5 keys *bytes
LeaseLeasesRequest:
LeaseStatus: 1 ID int64
LeaseLeasesResponse: 1 header ResponseHeader, 2 leases *LeaseStatus
Member: 1 ID uint64, 2 name string, 3 peerURLs *string, 4 clientURLs *string, 5 isLearner bool
MemberAddRequest: 1 peerURLs *string, 2 isLearner bool
MemberAddResponse: 1 header ResponseHeader, 2 member Member, 3 members *Member
MemberRemoveRequest: 1 ID uint64
MemberRemoveResponse: 1 header ResponseHeader, 2 members *Member
MemberUpdateRequest: 1 ID uint64, 2 peerURLs *string
MemberUpdateResponse: 1 header ResponseHeader, 2 members *Member
MemberListRequest: 1 linearizable bool
MemberListResponse: 1 header ResponseHeader, 2 members *Member
MemberPromoteRequest: 1 ID uint64
MemberPromoteResponse: 1 header ResponseHeader, 2 members *Member
AlarmRequest: 1 action int32, 2 memberID uint64, 3 alarm int32
AlarmMember: 1 memberID uint64, 2 alarm int32
AlarmResponse: 1 header ResponseHeader, 2 alarms *AlarmMember
StatusRequest:
StatusResponse: 1 header ResponseHeader, 2 version string, 3 dbSize int64, 4 leader uint64, 5 raftIndex uint64,
  6 raftTerm uint64, 7 raftAppliedIndex uint64, 8 errors *string, 9 dbSizeInUse int64, 10 isLearner bool
DefragmentRequest:
DefragmentResponse: 1 header ResponseHeader
HashRequest:
HashResponse: 1 header ResponseHeader, 2 hash uint32
HashKVRequest: 1 revision int64
HashKVResponse: 1 header ResponseHeader, 2 hash uint32, 3 compact_revision int64, 4 hash_revision int64
SnapshotRequest:
SnapshotResponse: 1 header ResponseHeader, 2 remaining_bytes uint64, 3 blob bytes
MoveLeaderRequest: 1 targetID uint64
MoveLeaderResponse: 1 header ResponseHeader
DowngradeRequest: 1 action int32, 2 version string
DowngradeResponse: 1 header ResponseHeader, 2 version string
AuthRequest:
AuthResponse: 1 header ResponseHeader
AuthStatusRequest:
AuthStatusResponse: 1 header ResponseHeader, 2 enabled bool, 3 authRevision uint64
AuthenticateRequest: 1 name string, 2 password string
AuthenticateResponse: 1 header ResponseHeader, 2 token string
""",
)
