import datetime

from bursar.v1 import errors_pb2 as _errors_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_OK: _ClassVar[Verdict]
    VERDICT_WARN: _ClassVar[Verdict]
    VERDICT_DEGRADE: _ClassVar[Verdict]
    VERDICT_STOP: _ClassVar[Verdict]
VERDICT_UNSPECIFIED: Verdict
VERDICT_OK: Verdict
VERDICT_WARN: Verdict
VERDICT_DEGRADE: Verdict
VERDICT_STOP: Verdict

class Amount(_message.Message):
    __slots__ = ("unit", "value")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    unit: str
    value: int
    def __init__(self, unit: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class UsageEstimate(_message.Message):
    __slots__ = ("model", "input_tokens", "cached_input_tokens", "cache_write_tokens", "max_output_tokens", "min_output_tokens", "gpu_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GPU_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    max_output_tokens: int
    min_output_tokens: int
    gpu_ms: int
    def __init__(self, model: _Optional[str] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., min_output_tokens: _Optional[int] = ..., gpu_ms: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("model", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "gpu_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GPU_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    gpu_ms: int
    def __init__(self, model: _Optional[str] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., gpu_ms: _Optional[int] = ...) -> None: ...

class Advice(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "repetition_penalty", "fallback_model", "notice")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    repetition_penalty: float
    fallback_model: str
    notice: str
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., fallback_model: _Optional[str] = ..., notice: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "account", "unit", "shortfall", "reset_time", "hint")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Refusal.Reason]
        REASON_BUDGET_EXHAUSTED: _ClassVar[Refusal.Reason]
        REASON_ACCOUNT_FROZEN: _ClassVar[Refusal.Reason]
        REASON_PARENT_HOLD_EXHAUSTED: _ClassVar[Refusal.Reason]
        REASON_HOLD_EXHAUSTED: _ClassVar[Refusal.Reason]
        REASON_RUNAWAY: _ClassVar[Refusal.Reason]
    REASON_UNSPECIFIED: Refusal.Reason
    REASON_BUDGET_EXHAUSTED: Refusal.Reason
    REASON_ACCOUNT_FROZEN: Refusal.Reason
    REASON_PARENT_HOLD_EXHAUSTED: Refusal.Reason
    REASON_HOLD_EXHAUSTED: Refusal.Reason
    REASON_RUNAWAY: Refusal.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_FIELD_NUMBER: _ClassVar[int]
    RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal.Reason
    account: str
    unit: str
    shortfall: int
    reset_time: _timestamp_pb2.Timestamp
    hint: str
    def __init__(self, reason: _Optional[_Union[Refusal.Reason, str]] = ..., account: _Optional[str] = ..., unit: _Optional[str] = ..., shortfall: _Optional[int] = ..., reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., hint: _Optional[str] = ...) -> None: ...

class Balance(_message.Message):
    __slots__ = ("account", "unit", "period", "limit", "held", "spent", "remaining", "start_time", "reset_time")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    account: str
    unit: str
    period: str
    limit: int
    held: int
    spent: int
    remaining: int
    start_time: _timestamp_pb2.Timestamp
    reset_time: _timestamp_pb2.Timestamp
    def __init__(self, account: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[str] = ..., limit: _Optional[int] = ..., held: _Optional[int] = ..., spent: _Optional[int] = ..., remaining: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("id", "state", "account", "granted", "used", "spent", "max_output_tokens", "create_time", "expire_time", "ttl", "parent_reservation", "model")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Reservation.State]
        STATE_PENDING: _ClassVar[Reservation.State]
        STATE_COMMITTED: _ClassVar[Reservation.State]
        STATE_RELEASED: _ClassVar[Reservation.State]
        STATE_EXPIRED: _ClassVar[Reservation.State]
    STATE_UNSPECIFIED: Reservation.State
    STATE_PENDING: Reservation.State
    STATE_COMMITTED: Reservation.State
    STATE_RELEASED: Reservation.State
    STATE_EXPIRED: Reservation.State
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    PARENT_RESERVATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: Reservation.State
    account: str
    granted: _containers.RepeatedCompositeFieldContainer[Amount]
    used: _containers.RepeatedCompositeFieldContainer[Amount]
    spent: _containers.RepeatedCompositeFieldContainer[Amount]
    max_output_tokens: int
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    parent_reservation: str
    model: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[Reservation.State, str]] = ..., account: _Optional[str] = ..., granted: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., used: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., spent: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., max_output_tokens: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., parent_reservation: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("account", "idempotency_key", "amounts", "usage", "min_acceptable", "ttl", "parent_reservation", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCEPTABLE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    PARENT_RESERVATION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    account: str
    idempotency_key: str
    amounts: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: UsageEstimate
    min_acceptable: _containers.RepeatedCompositeFieldContainer[Amount]
    ttl: _duration_pb2.Duration
    parent_reservation: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, account: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., amounts: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[UsageEstimate, _Mapping]] = ..., min_acceptable: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., parent_reservation: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("verdict", "reservation", "advice", "refusal", "balances")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reservation: Reservation
    advice: Advice
    refusal: Refusal
    balances: _containers.RepeatedCompositeFieldContainer[Balance]
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reservation: _Optional[_Union[Reservation, _Mapping]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., balances: _Optional[_Iterable[_Union[Balance, _Mapping]]] = ...) -> None: ...

class DebitRequest(_message.Message):
    __slots__ = ("reservation", "used", "usage")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    used: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: Usage
    def __init__(self, reservation: _Optional[str] = ..., used: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class DebitResponse(_message.Message):
    __slots__ = ("verdict", "remaining", "advice", "refusal")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    remaining: _containers.RepeatedCompositeFieldContainer[Amount]
    advice: Advice
    refusal: Refusal
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., remaining: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class MeterRequest(_message.Message):
    __slots__ = ("debits",)
    DEBITS_FIELD_NUMBER: _ClassVar[int]
    debits: _containers.RepeatedCompositeFieldContainer[MeterDebit]
    def __init__(self, debits: _Optional[_Iterable[_Union[MeterDebit, _Mapping]]] = ...) -> None: ...

class MeterDebit(_message.Message):
    __slots__ = ("reservation", "used", "usage")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    used: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: Usage
    def __init__(self, reservation: _Optional[str] = ..., used: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class MeterResponse(_message.Message):
    __slots__ = ("answers", "unasked")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    UNASKED_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[MeterAnswer]
    unasked: bool
    def __init__(self, answers: _Optional[_Iterable[_Union[MeterAnswer, _Mapping]]] = ..., unasked: _Optional[bool] = ...) -> None: ...

class MeterAnswer(_message.Message):
    __slots__ = ("reservation", "verdict", "remaining", "advice", "refusal", "error")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    verdict: Verdict
    remaining: _containers.RepeatedCompositeFieldContainer[Amount]
    advice: Advice
    refusal: Refusal
    error: MeterError
    def __init__(self, reservation: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., remaining: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., error: _Optional[_Union[MeterError, _Mapping]] = ...) -> None: ...

class MeterError(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: _errors_pb2.ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ExtendRequest(_message.Message):
    __slots__ = ("reservation", "granted", "min_acceptable", "ttl", "usage", "top_up")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCEPTABLE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TOP_UP_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    granted: _containers.RepeatedCompositeFieldContainer[Amount]
    min_acceptable: _containers.RepeatedCompositeFieldContainer[Amount]
    ttl: _duration_pb2.Duration
    usage: UsageEstimate
    top_up: bool
    def __init__(self, reservation: _Optional[str] = ..., granted: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., min_acceptable: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., usage: _Optional[_Union[UsageEstimate, _Mapping]] = ..., top_up: _Optional[bool] = ...) -> None: ...

class ExtendResponse(_message.Message):
    __slots__ = ("verdict", "reservation", "advice", "refusal")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reservation: Reservation
    advice: Advice
    refusal: Refusal
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reservation: _Optional[_Union[Reservation, _Mapping]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("reservation", "actual", "usage", "success")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    actual: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: Usage
    success: bool
    def __init__(self, reservation: _Optional[str] = ..., actual: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., success: _Optional[bool] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("verdict", "spent", "returned", "overdraft", "advice")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    OVERDRAFT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    spent: _containers.RepeatedCompositeFieldContainer[Amount]
    returned: _containers.RepeatedCompositeFieldContainer[Amount]
    overdraft: _containers.RepeatedCompositeFieldContainer[Amount]
    advice: Advice
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., spent: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., overdraft: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("reservation",)
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    def __init__(self, reservation: _Optional[str] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("state", "spent", "returned")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    state: Reservation.State
    spent: _containers.RepeatedCompositeFieldContainer[Amount]
    returned: _containers.RepeatedCompositeFieldContainer[Amount]
    def __init__(self, state: _Optional[_Union[Reservation.State, str]] = ..., spent: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("account", "idempotency_key", "amounts", "usage", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    account: str
    idempotency_key: str
    amounts: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: Usage
    labels: _containers.ScalarMap[str, str]
    def __init__(self, account: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., amounts: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ("verdict", "spent", "overdraft", "advice")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    OVERDRAFT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    spent: _containers.RepeatedCompositeFieldContainer[Amount]
    overdraft: _containers.RepeatedCompositeFieldContainer[Amount]
    advice: Advice
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., spent: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., overdraft: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("account", "amounts", "usage", "min_acceptable")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCEPTABLE_FIELD_NUMBER: _ClassVar[int]
    account: str
    amounts: _containers.RepeatedCompositeFieldContainer[Amount]
    usage: UsageEstimate
    min_acceptable: _containers.RepeatedCompositeFieldContainer[Amount]
    def __init__(self, account: _Optional[str] = ..., amounts: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., usage: _Optional[_Union[UsageEstimate, _Mapping]] = ..., min_acceptable: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("verdict", "granted", "max_output_tokens", "advice", "refusal", "balances")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    granted: _containers.RepeatedCompositeFieldContainer[Amount]
    max_output_tokens: int
    advice: Advice
    refusal: Refusal
    balances: _containers.RepeatedCompositeFieldContainer[Balance]
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., granted: _Optional[_Iterable[_Union[Amount, _Mapping]]] = ..., max_output_tokens: _Optional[int] = ..., advice: _Optional[_Union[Advice, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., balances: _Optional[_Iterable[_Union[Balance, _Mapping]]] = ...) -> None: ...

class GetReservationRequest(_message.Message):
    __slots__ = ("reservation",)
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    def __init__(self, reservation: _Optional[str] = ...) -> None: ...

class GetReservationResponse(_message.Message):
    __slots__ = ("reservation",)
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    reservation: Reservation
    def __init__(self, reservation: _Optional[_Union[Reservation, _Mapping]] = ...) -> None: ...

class ListReservationsRequest(_message.Message):
    __slots__ = ("account", "page_size")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    account: str
    page_size: int
    def __init__(self, account: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListReservationsResponse(_message.Message):
    __slots__ = ("reservations",)
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    reservations: _containers.RepeatedCompositeFieldContainer[OpenReservation]
    def __init__(self, reservations: _Optional[_Iterable[_Union[OpenReservation, _Mapping]]] = ...) -> None: ...

class OpenReservation(_message.Message):
    __slots__ = ("reservation", "debiting")
    class Debiting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DEBITING_UNSPECIFIED: _ClassVar[OpenReservation.Debiting]
        DEBITING_CALLS: _ClassVar[OpenReservation.Debiting]
        DEBITING_STREAM: _ClassVar[OpenReservation.Debiting]
        DEBITING_LEASE: _ClassVar[OpenReservation.Debiting]
    DEBITING_UNSPECIFIED: OpenReservation.Debiting
    DEBITING_CALLS: OpenReservation.Debiting
    DEBITING_STREAM: OpenReservation.Debiting
    DEBITING_LEASE: OpenReservation.Debiting
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    DEBITING_FIELD_NUMBER: _ClassVar[int]
    reservation: Reservation
    debiting: OpenReservation.Debiting
    def __init__(self, reservation: _Optional[_Union[Reservation, _Mapping]] = ..., debiting: _Optional[_Union[OpenReservation.Debiting, str]] = ...) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("model", "text")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("token_count", "encoding")
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    token_count: int
    encoding: str
    def __init__(self, token_count: _Optional[int] = ..., encoding: _Optional[str] = ...) -> None: ...
