//! The table of types.

use super::{Enum, Member, Object, Type, Variants};

const fn req(name: &'static str, of: Type) -> Member {
    Member { name, of, optional: false }
}

const fn opt(name: &'static str, of: Type) -> Member {
    Member { name, of, optional: true }
}

const fn object(name: &'static str, members: &'static [Member]) -> Object {
    Object { name, members, variants: None }
}

const STRINGS: Type = Type::Array(&Type::Str);

/// An object without members: the arguments or the result of a command that has none.
pub static EMPTY: Object = object("q_empty", &[]);

pub static QMP_CAPABILITY: Enum = Enum { name: "QMPCapability", values: &["oob"] };

pub static QMP_CAPABILITIES_ARGS: Object = object(
    "q_obj_qmp_capabilities-arg",
    &[opt("enable", Type::Array(&Type::Enum(&QMP_CAPABILITY)))],
);

pub static VERSION_INFO: Object =
    object("VersionInfo", &[req("qemu", Type::Object(&VERSION_TRIPLE)), req("package", Type::Str)]);

pub static VERSION_TRIPLE: Object = object(
    "VersionTriple",
    &[req("major", Type::Int), req("minor", Type::Int), req("micro", Type::Int)],
);

pub static COMMAND_INFO: Object = object("CommandInfo", &[req("name", Type::Str)]);

pub static NAME_INFO: Object = object("NameInfo", &[opt("name", Type::Str)]);

pub static RUN_STATE: Enum = Enum {
    name: "RunState",
    values: &[
        "prelaunch",
        "inmigrate",
        "paused",
        "finish-migrate",
        "postmigrate",
        "running",
        "shutdown",
        "internal-error",
        "guest-panicked",
    ],
};

pub static STATUS_INFO: Object =
    object("StatusInfo", &[req("running", Type::Bool), req("status", Type::Enum(&RUN_STATE))]);

pub static SYS_EMU_TARGET: Enum = Enum { name: "SysEmuTarget", values: &["x86_64"] };

pub static CPU_INFO_FAST: Object = object(
    "CpuInfoFast",
    &[
        req("cpu-index", Type::Int),
        req("qom-type", Type::Str),
        req("qom-path", Type::Str),
        req("thread-id", Type::Int),
        req("target", Type::Enum(&SYS_EMU_TARGET)),
    ],
);

pub static MEMORY_INFO: Object =
    object("MemoryInfo", &[req("base-memory", Type::Uint64), opt("plugged-memory", Type::Uint64)]);

pub static PMEMSAVE_ARGS: Object = object(
    "q_obj_pmemsave-arg",
    &[req("val", Type::Uint64), req("size", Type::Uint64), req("filename", Type::Str)],
);

pub static MIGRATION_CHANNEL_TYPE: Enum =
    Enum { name: "MigrationChannelType", values: &["main", "cpr"] };

pub static MIGRATION_CHANNEL: Object = object(
    "MigrationChannel",
    &[
        req("channel-type", Type::Enum(&MIGRATION_CHANNEL_TYPE)),
        req("addr", Type::Object(&MIGRATION_ADDRESS)),
    ],
);

pub static MIGRATION_ADDRESS_TYPE: Enum =
    Enum { name: "MigrationAddressType", values: &["socket", "exec", "rdma", "file"] };

pub static MIGRATION_ADDRESS: Object = Object {
    name: "MigrationAddress",
    members: &[req("transport", Type::Enum(&MIGRATION_ADDRESS_TYPE))],
    variants: Some(Variants {
        tag: "transport",
        cases: &[
            ("socket", &SOCKET_ADDRESS),
            ("exec", &MIGRATION_EXEC_COMMAND),
            ("rdma", &INET_SOCKET_ADDRESS),
            ("file", &FILE_MIGRATION_ARGS),
        ],
    }),
};

pub static MIGRATION_EXEC_COMMAND: Object = object("MigrationExecCommand", &[req("args", STRINGS)]);

pub static FILE_MIGRATION_ARGS: Object =
    object("FileMigrationArgs", &[req("filename", Type::Str), req("offset", Type::Uint64)]);

pub static SOCKET_ADDRESS_TYPE: Enum =
    Enum { name: "SocketAddressType", values: &["inet", "unix", "vsock", "fd"] };

pub static SOCKET_ADDRESS: Object = Object {
    name: "SocketAddress",
    members: &[req("type", Type::Enum(&SOCKET_ADDRESS_TYPE))],
    variants: Some(Variants {
        tag: "type",
        cases: &[
            ("inet", &INET_SOCKET_ADDRESS),
            ("unix", &UNIX_SOCKET_ADDRESS),
            ("vsock", &VSOCK_SOCKET_ADDRESS),
            ("fd", &FD_SOCKET_ADDRESS),
        ],
    }),
};

pub static INET_SOCKET_ADDRESS: Object = object(
    "InetSocketAddress",
    &[
        req("host", Type::Str),
        req("port", Type::Str),
        opt("numeric", Type::Bool),
        opt("to", Type::Uint16),
        opt("ipv4", Type::Bool),
        opt("ipv6", Type::Bool),
        opt("keep-alive", Type::Bool),
        opt("mptcp", Type::Bool),
    ],
);

pub static UNIX_SOCKET_ADDRESS: Object = object(
    "UnixSocketAddress",
    &[req("path", Type::Str), opt("abstract", Type::Bool), opt("tight", Type::Bool)],
);

pub static VSOCK_SOCKET_ADDRESS: Object =
    object("VsockSocketAddress", &[req("cid", Type::Str), req("port", Type::Str)]);

pub static FD_SOCKET_ADDRESS: Object = object("FdSocketAddress", &[req("str", Type::Str)]);

const CHANNELS: Type = Type::Array(&Type::Object(&MIGRATION_CHANNEL));

pub static MIGRATE_ARGS: Object = object(
    "q_obj_migrate-arg",
    &[opt("uri", Type::Str), opt("channels", CHANNELS), opt("resume", Type::Bool)],
);

pub static MIGRATE_INCOMING_ARGS: Object = object(
    "q_obj_migrate-incoming-arg",
    &[opt("uri", Type::Str), opt("channels", CHANNELS), opt("exit-on-error", Type::Bool)],
);

pub static MIGRATION_STATUS: Enum = Enum {
    name: "MigrationStatus",
    values: &[
        "none",
        "setup",
        "cancelling",
        "cancelled",
        "active",
        "completed",
        "failed",
        "device",
    ],
};

pub static MIGRATION_INFO: Object = object(
    "MigrationInfo",
    &[
        opt("status", Type::Enum(&MIGRATION_STATUS)),
        opt("total-time", Type::Uint64),
        opt("downtime", Type::Uint64),
        opt("expected-downtime", Type::Uint64),
        opt("ram", Type::Object(&MIGRATION_RAM_STATS)),
        opt("setup-time", Type::Uint64),
        opt("error-desc", Type::Str),
        opt("blocked-reasons", STRINGS),
        opt("x-rehearsal-time", Type::Uint64),
    ],
);

pub static MIGRATION_RAM_STATS: Object = object(
    "MigrationRAMStats",
    &[
        req("transferred", Type::Int),
        req("remaining", Type::Int),
        req("total", Type::Int),
        req("duplicate", Type::Int),
        req("normal", Type::Int),
        req("normal-bytes", Type::Int),
        req("dirty-pages-rate", Type::Int),
        req("mbps", Type::Number),
        req("dirty-sync-count", Type::Int),
        req("postcopy-requests", Type::Int),
        req("page-size", Type::Int),
        req("multifd-bytes", Type::Uint64),
        req("pages-per-second", Type::Uint64),
        req("precopy-bytes", Type::Uint64),
        req("downtime-bytes", Type::Uint64),
        req("postcopy-bytes", Type::Uint64),
        req("dirty-sync-missed-zero-copy", Type::Uint64),
    ],
);

pub static MIG_MODE: Enum =
    Enum { name: "MigMode", values: &["normal", "cpr-reboot", "cpr-transfer", "cpr-exec"] };

pub static MIGRATION_PARAMETERS: Object = object(
    "MigrationParameters",
    &[
        opt("mode", Type::Enum(&MIG_MODE)),
        opt("max-bandwidth", Type::Uint64),
        opt("downtime-limit", Type::Uint64),
        opt("cpr-exec-command", STRINGS),
        opt("x-cpr-exec-rehearsal", Type::Bool),
        opt("x-cpr-exec-rehearsal-timeout", Type::Uint64),
        opt("x-cpr-exec-deadline", Type::Uint64),
        opt("x-max-downtime", Type::Uint64),
    ],
);

pub static MIGRATION_CAPABILITY: Enum = Enum { name: "MigrationCapability", values: &["events"] };

pub static MIGRATION_CAPABILITY_STATUS: Object = object(
    "MigrationCapabilityStatus",
    &[req("capability", Type::Enum(&MIGRATION_CAPABILITY)), req("state", Type::Bool)],
);

pub static CAPABILITY_STATUSES: Type = Type::Array(&Type::Object(&MIGRATION_CAPABILITY_STATUS));

pub static MIGRATE_SET_CAPABILITIES_ARGS: Object =
    object("q_obj_migrate-set-capabilities-arg", &[req("capabilities", CAPABILITY_STATUSES)]);

#[cfg(feature = "failpoints")]
pub static FAILPOINT_INFO: Object = object(
    "FailpointInfo",
    &[
        req("name", Type::Str),
        req("in-new", Type::Bool),
        req("short-write", Type::Bool),
        req("armed", Type::Bool),
    ],
);

#[cfg(feature = "failpoints")]
pub static AUDIT_VALUE: Object =
    object("AuditValue", &[req("name", Type::Str), req("value", Type::Str)]);

#[cfg(feature = "failpoints")]
pub static SET_FAILPOINT_ARGS: Object =
    object("q_obj_x-set-failpoint-arg", &[req("point", Type::Str), req("action", Type::Str)]);

#[cfg(feature = "failpoints")]
pub static INJECT_ARGS: Object = object(
    "q_obj_x-inject-arg",
    &[req("what", Type::Str), req("cpu", Type::Uint64), req("page", Type::Uint64)],
);

pub static SHUTDOWN_CAUSE: Enum = Enum {
    name: "ShutdownCause",
    values: &[
        "none",
        "host-error",
        "host-qmp-quit",
        "host-qmp-system-reset",
        "host-signal",
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
    ],
};

const GUEST_AND_REASON: &[Member] =
    &[req("guest", Type::Bool), req("reason", Type::Enum(&SHUTDOWN_CAUSE))];

pub static SHUTDOWN_DATA: Object = object("q_obj_SHUTDOWN-arg", GUEST_AND_REASON);

pub static RESET_DATA: Object = object("q_obj_RESET-arg", GUEST_AND_REASON);

pub static MIGRATION_PASS_DATA: Object =
    object("q_obj_MIGRATION_PASS-arg", &[req("pass", Type::Int)]);

pub static MIGRATION_DATA: Object = object(
    "q_obj_MIGRATION-arg",
    &[req("status", Type::Enum(&MIGRATION_STATUS)), opt("x-downtime-us", Type::Uint64)],
);

pub static SCHEMA_META_TYPE: Enum = Enum {
    name: "SchemaMetaType",
    values: &["builtin", "enum", "array", "object", "alternate", "command", "event"],
};

/// The answer to `query-qmp-schema` describes itself too (QEMU `qapi/introspect.json`).
pub static SCHEMA_INFO: Object = Object {
    name: "SchemaInfo",
    members: &[
        req("name", Type::Str),
        req("meta-type", Type::Enum(&SCHEMA_META_TYPE)),
        opt("features", STRINGS),
    ],
    variants: Some(Variants {
        tag: "meta-type",
        cases: &[
            ("builtin", &SCHEMA_INFO_BUILTIN),
            ("enum", &SCHEMA_INFO_ENUM),
            ("array", &SCHEMA_INFO_ARRAY),
            ("object", &SCHEMA_INFO_OBJECT),
            ("alternate", &SCHEMA_INFO_ALTERNATE),
            ("command", &SCHEMA_INFO_COMMAND),
            ("event", &SCHEMA_INFO_EVENT),
        ],
    }),
};

pub static JSON_TYPE: Enum = Enum {
    name: "JSONType",
    values: &["string", "number", "int", "boolean", "null", "object", "array", "value"],
};

pub static SCHEMA_INFO_BUILTIN: Object =
    object("SchemaInfoBuiltin", &[req("json-type", Type::Enum(&JSON_TYPE))]);

pub static SCHEMA_INFO_ENUM: Object = object(
    "SchemaInfoEnum",
    &[req("members", Type::Array(&Type::Object(&SCHEMA_INFO_ENUM_MEMBER))), req("values", STRINGS)],
);

pub static SCHEMA_INFO_ENUM_MEMBER: Object =
    object("SchemaInfoEnumMember", &[req("name", Type::Str), opt("features", STRINGS)]);

pub static SCHEMA_INFO_ARRAY: Object = object("SchemaInfoArray", &[req("element-type", Type::Str)]);

pub static SCHEMA_INFO_OBJECT: Object = object(
    "SchemaInfoObject",
    &[
        req("members", Type::Array(&Type::Object(&SCHEMA_INFO_OBJECT_MEMBER))),
        opt("tag", Type::Str),
        opt("variants", Type::Array(&Type::Object(&SCHEMA_INFO_OBJECT_VARIANT))),
    ],
);

pub static SCHEMA_INFO_OBJECT_MEMBER: Object = object(
    "SchemaInfoObjectMember",
    &[
        req("name", Type::Str),
        req("type", Type::Str),
        opt("default", Type::Any),
        opt("features", STRINGS),
    ],
);

pub static SCHEMA_INFO_OBJECT_VARIANT: Object =
    object("SchemaInfoObjectVariant", &[req("case", Type::Str), req("type", Type::Str)]);

pub static SCHEMA_INFO_ALTERNATE: Object = object(
    "SchemaInfoAlternate",
    &[req("members", Type::Array(&Type::Object(&SCHEMA_INFO_ALTERNATE_MEMBER)))],
);

pub static SCHEMA_INFO_ALTERNATE_MEMBER: Object =
    object("SchemaInfoAlternateMember", &[req("type", Type::Str)]);

pub static SCHEMA_INFO_COMMAND: Object = object(
    "SchemaInfoCommand",
    &[req("arg-type", Type::Str), req("ret-type", Type::Str), opt("allow-oob", Type::Bool)],
);

pub static SCHEMA_INFO_EVENT: Object = object("SchemaInfoEvent", &[req("arg-type", Type::Str)]);
