import datetime

from bursar.v1 import ledger_pb2 as _ledger_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Job(_message.Message):
    __slots__ = ("id", "name", "account", "pid", "uid", "cgroup", "limits", "wall_limit", "enforce", "term_grace", "create_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    WALL_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ENFORCE_FIELD_NUMBER: _ClassVar[int]
    TERM_GRACE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    account: str
    pid: int
    uid: int
    cgroup: str
    limits: _containers.RepeatedCompositeFieldContainer[_ledger_pb2.Amount]
    wall_limit: _duration_pb2.Duration
    enforce: bool
    term_grace: _duration_pb2.Duration
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., account: _Optional[str] = ..., pid: _Optional[int] = ..., uid: _Optional[int] = ..., cgroup: _Optional[str] = ..., limits: _Optional[_Iterable[_Union[_ledger_pb2.Amount, _Mapping]]] = ..., wall_limit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., enforce: _Optional[bool] = ..., term_grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RegisterProcessRequest(_message.Message):
    __slots__ = ("account", "pid", "name", "limits", "wall_limit", "cgroup", "enforce", "term_grace", "reservation")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    WALL_LIMIT_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    ENFORCE_FIELD_NUMBER: _ClassVar[int]
    TERM_GRACE_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    account: str
    pid: int
    name: str
    limits: _containers.RepeatedCompositeFieldContainer[_ledger_pb2.Amount]
    wall_limit: _duration_pb2.Duration
    cgroup: str
    enforce: bool
    term_grace: _duration_pb2.Duration
    reservation: str
    def __init__(self, account: _Optional[str] = ..., pid: _Optional[int] = ..., name: _Optional[str] = ..., limits: _Optional[_Iterable[_Union[_ledger_pb2.Amount, _Mapping]]] = ..., wall_limit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cgroup: _Optional[str] = ..., enforce: _Optional[bool] = ..., term_grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reservation: _Optional[str] = ...) -> None: ...

class RegisterProcessResponse(_message.Message):
    __slots__ = ("verdict", "job", "refusal")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    verdict: _ledger_pb2.Verdict
    job: Job
    refusal: _ledger_pb2.Refusal
    def __init__(self, verdict: _Optional[_Union[_ledger_pb2.Verdict, str]] = ..., job: _Optional[_Union[Job, _Mapping]] = ..., refusal: _Optional[_Union[_ledger_pb2.Refusal, _Mapping]] = ...) -> None: ...

class Watchdog(_message.Message):
    __slots__ = ("state", "detail", "mode", "sample_time", "driver_version", "held_back")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Watchdog.State]
        STATE_WATCHING: _ClassVar[Watchdog.State]
        STATE_NO_NVML: _ClassVar[Watchdog.State]
        STATE_BLIND: _ClassVar[Watchdog.State]
    STATE_UNSPECIFIED: Watchdog.State
    STATE_WATCHING: Watchdog.State
    STATE_NO_NVML: Watchdog.State
    STATE_BLIND: Watchdog.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_BACK_FIELD_NUMBER: _ClassVar[int]
    state: Watchdog.State
    detail: str
    mode: str
    sample_time: _timestamp_pb2.Timestamp
    driver_version: str
    held_back: str
    def __init__(self, state: _Optional[_Union[Watchdog.State, str]] = ..., detail: _Optional[str] = ..., mode: _Optional[str] = ..., sample_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., driver_version: _Optional[str] = ..., held_back: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("uuid", "index", "name", "vram_total_bytes", "vram_used_bytes", "busy_percent", "vram_quarantined_bytes", "error")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VRAM_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    VRAM_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUSY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    VRAM_QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    name: str
    vram_total_bytes: int
    vram_used_bytes: int
    busy_percent: int
    vram_quarantined_bytes: int
    error: str
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., name: _Optional[str] = ..., vram_total_bytes: _Optional[int] = ..., vram_used_bytes: _Optional[int] = ..., busy_percent: _Optional[int] = ..., vram_quarantined_bytes: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "command", "uid", "account", "source", "job", "device", "vram_bytes", "busy_percent", "state")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[Process.Source]
        SOURCE_CGROUP: _ClassVar[Process.Source]
        SOURCE_REGISTERED: _ClassVar[Process.Source]
        SOURCE_ANCESTOR: _ClassVar[Process.Source]
        SOURCE_CONTAINER: _ClassVar[Process.Source]
    SOURCE_UNSPECIFIED: Process.Source
    SOURCE_CGROUP: Process.Source
    SOURCE_REGISTERED: Process.Source
    SOURCE_ANCESTOR: Process.Source
    SOURCE_CONTAINER: Process.Source
    PID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUSY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    pid: int
    command: str
    uid: int
    account: str
    source: Process.Source
    job: str
    device: str
    vram_bytes: int
    busy_percent: int
    state: Incident.State
    def __init__(self, pid: _Optional[int] = ..., command: _Optional[str] = ..., uid: _Optional[int] = ..., account: _Optional[str] = ..., source: _Optional[_Union[Process.Source, str]] = ..., job: _Optional[str] = ..., device: _Optional[str] = ..., vram_bytes: _Optional[int] = ..., busy_percent: _Optional[int] = ..., state: _Optional[_Union[Incident.State, str]] = ...) -> None: ...

class ListProcessesRequest(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class ListProcessesResponse(_message.Message):
    __slots__ = ("watchdog", "devices", "processes", "jobs", "metered")
    WATCHDOG_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    watchdog: Watchdog
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    metered: _containers.RepeatedCompositeFieldContainer[MeteredAccount]
    def __init__(self, watchdog: _Optional[_Union[Watchdog, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., metered: _Optional[_Iterable[_Union[MeteredAccount, _Mapping]]] = ...) -> None: ...

class MeteredAccount(_message.Message):
    __slots__ = ("account", "amounts")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    account: str
    amounts: _containers.RepeatedCompositeFieldContainer[_ledger_pb2.Amount]
    def __init__(self, account: _Optional[str] = ..., amounts: _Optional[_Iterable[_Union[_ledger_pb2.Amount, _Mapping]]] = ...) -> None: ...

class KillProcessRequest(_message.Message):
    __slots__ = ("job", "pid", "reason")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job: str
    pid: int
    reason: str
    def __init__(self, job: _Optional[str] = ..., pid: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class KillProcessResponse(_message.Message):
    __slots__ = ("incident",)
    INCIDENT_FIELD_NUMBER: _ClassVar[int]
    incident: Incident
    def __init__(self, incident: _Optional[_Union[Incident, _Mapping]] = ...) -> None: ...

class Incident(_message.Message):
    __slots__ = ("id", "state", "account", "job", "job_name", "cause", "limit_account", "unit", "limit", "used", "reason", "steps", "victims", "vram_bytes", "vram_returned_bytes", "vram_quarantined_bytes", "create_time", "end_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Incident.State]
        STATE_BREACH: _ClassVar[Incident.State]
        STATE_TERM: _ClassVar[Incident.State]
        STATE_KILL: _ClassVar[Incident.State]
        STATE_VERIFY: _ClassVar[Incident.State]
        STATE_RECLAIMED: _ClassVar[Incident.State]
        STATE_UNVERIFIED: _ClassVar[Incident.State]
        STATE_RECLAIM_FAILED: _ClassVar[Incident.State]
        STATE_UNKILLABLE: _ClassVar[Incident.State]
        STATE_CANCELLED: _ClassVar[Incident.State]
        STATE_OBSERVED: _ClassVar[Incident.State]
    STATE_UNSPECIFIED: Incident.State
    STATE_BREACH: Incident.State
    STATE_TERM: Incident.State
    STATE_KILL: Incident.State
    STATE_VERIFY: Incident.State
    STATE_RECLAIMED: Incident.State
    STATE_UNVERIFIED: Incident.State
    STATE_RECLAIM_FAILED: Incident.State
    STATE_UNKILLABLE: Incident.State
    STATE_CANCELLED: Incident.State
    STATE_OBSERVED: Incident.State
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[Incident.Cause]
        CAUSE_BUDGET: _ClassVar[Incident.Cause]
        CAUSE_WALL_TIME: _ClassVar[Incident.Cause]
        CAUSE_OPERATOR: _ClassVar[Incident.Cause]
    CAUSE_UNSPECIFIED: Incident.Cause
    CAUSE_BUDGET: Incident.Cause
    CAUSE_WALL_TIME: Incident.Cause
    CAUSE_OPERATOR: Incident.Cause
    class Step(_message.Message):
        __slots__ = ("state", "time", "detail")
        STATE_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        DETAIL_FIELD_NUMBER: _ClassVar[int]
        state: Incident.State
        time: _timestamp_pb2.Timestamp
        detail: str
        def __init__(self, state: _Optional[_Union[Incident.State, str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., detail: _Optional[str] = ...) -> None: ...
    class Victim(_message.Message):
        __slots__ = ("pid", "command", "vram_bytes")
        PID_FIELD_NUMBER: _ClassVar[int]
        COMMAND_FIELD_NUMBER: _ClassVar[int]
        VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
        pid: int
        command: str
        vram_bytes: int
        def __init__(self, pid: _Optional[int] = ..., command: _Optional[str] = ..., vram_bytes: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VICTIMS_FIELD_NUMBER: _ClassVar[int]
    VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VRAM_RETURNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VRAM_QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: Incident.State
    account: str
    job: str
    job_name: str
    cause: Incident.Cause
    limit_account: str
    unit: str
    limit: int
    used: int
    reason: str
    steps: _containers.RepeatedCompositeFieldContainer[Incident.Step]
    victims: _containers.RepeatedCompositeFieldContainer[Incident.Victim]
    vram_bytes: int
    vram_returned_bytes: int
    vram_quarantined_bytes: int
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[Incident.State, str]] = ..., account: _Optional[str] = ..., job: _Optional[str] = ..., job_name: _Optional[str] = ..., cause: _Optional[_Union[Incident.Cause, str]] = ..., limit_account: _Optional[str] = ..., unit: _Optional[str] = ..., limit: _Optional[int] = ..., used: _Optional[int] = ..., reason: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Incident.Step, _Mapping]]] = ..., victims: _Optional[_Iterable[_Union[Incident.Victim, _Mapping]]] = ..., vram_bytes: _Optional[int] = ..., vram_returned_bytes: _Optional[int] = ..., vram_quarantined_bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListIncidentsRequest(_message.Message):
    __slots__ = ("account", "job", "page_size", "page_token")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    account: str
    job: str
    page_size: int
    page_token: str
    def __init__(self, account: _Optional[str] = ..., job: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIncidentsResponse(_message.Message):
    __slots__ = ("incidents", "next_page_token")
    INCIDENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    incidents: _containers.RepeatedCompositeFieldContainer[Incident]
    next_page_token: str
    def __init__(self, incidents: _Optional[_Iterable[_Union[Incident, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchProcessesRequest(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class WatchProcessesResponse(_message.Message):
    __slots__ = ("time", "kind", "account", "detail", "job", "incident", "watchdog")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[WatchProcessesResponse.Kind]
        KIND_JOB_REGISTERED: _ClassVar[WatchProcessesResponse.Kind]
        KIND_JOB_ENDED: _ClassVar[WatchProcessesResponse.Kind]
        KIND_SOFT_LIMIT: _ClassVar[WatchProcessesResponse.Kind]
        KIND_INCIDENT: _ClassVar[WatchProcessesResponse.Kind]
        KIND_WATCHDOG: _ClassVar[WatchProcessesResponse.Kind]
        KIND_ALARM: _ClassVar[WatchProcessesResponse.Kind]
    KIND_UNSPECIFIED: WatchProcessesResponse.Kind
    KIND_JOB_REGISTERED: WatchProcessesResponse.Kind
    KIND_JOB_ENDED: WatchProcessesResponse.Kind
    KIND_SOFT_LIMIT: WatchProcessesResponse.Kind
    KIND_INCIDENT: WatchProcessesResponse.Kind
    KIND_WATCHDOG: WatchProcessesResponse.Kind
    KIND_ALARM: WatchProcessesResponse.Kind
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    INCIDENT_FIELD_NUMBER: _ClassVar[int]
    WATCHDOG_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    kind: WatchProcessesResponse.Kind
    account: str
    detail: str
    job: Job
    incident: Incident
    watchdog: Watchdog
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[_Union[WatchProcessesResponse.Kind, str]] = ..., account: _Optional[str] = ..., detail: _Optional[str] = ..., job: _Optional[_Union[Job, _Mapping]] = ..., incident: _Optional[_Union[Incident, _Mapping]] = ..., watchdog: _Optional[_Union[Watchdog, _Mapping]] = ...) -> None: ...
