//! The table of commands and events.

use super::types::*;
use super::{CommandSpec, EventSpec, Object, Type};

const NOTHING: Type = Type::Object(&EMPTY);

const fn command(name: &'static str, arguments: &'static Object, returns: Type) -> CommandSpec {
    CommandSpec { name, arguments, returns }
}

const fn query(name: &'static str, returns: Type) -> CommandSpec {
    command(name, &EMPTY, returns)
}

/// Every command.
pub static COMMANDS: &[CommandSpec] = &[
    command("qmp_capabilities", &QMP_CAPABILITIES_ARGS, NOTHING),
    query("query-version", Type::Object(&VERSION_INFO)),
    query("query-commands", Type::Array(&Type::Object(&COMMAND_INFO))),
    query("query-qmp-schema", Type::Array(&Type::Object(&SCHEMA_INFO))),
    query("query-name", Type::Object(&NAME_INFO)),
    query("query-status", Type::Object(&STATUS_INFO)),
    query("query-cpus-fast", Type::Array(&Type::Object(&CPU_INFO_FAST))),
    query("query-memory-size-summary", Type::Object(&MEMORY_INFO)),
    command("stop", &EMPTY, NOTHING),
    command("cont", &EMPTY, NOTHING),
    command("quit", &EMPTY, NOTHING),
    command("system_reset", &EMPTY, NOTHING),
    command("system_powerdown", &EMPTY, NOTHING),
    command("inject-nmi", &EMPTY, NOTHING),
    command("pmemsave", &PMEMSAVE_ARGS, NOTHING),
    command("migrate", &MIGRATE_ARGS, NOTHING),
    command("migrate_cancel", &EMPTY, NOTHING),
    command("migrate-incoming", &MIGRATE_INCOMING_ARGS, NOTHING),
    query("query-migrate", Type::Object(&MIGRATION_INFO)),
    command("migrate-set-parameters", &MIGRATION_PARAMETERS, NOTHING),
    query("query-migrate-parameters", Type::Object(&MIGRATION_PARAMETERS)),
    command("migrate-set-capabilities", &MIGRATE_SET_CAPABILITIES_ARGS, NOTHING),
    query("query-migrate-capabilities", CAPABILITY_STATUSES),
    #[cfg(feature = "failpoints")]
    query("query-failpoints", Type::Array(&Type::Object(&FAILPOINT_INFO))),
    #[cfg(feature = "failpoints")]
    command("x-set-failpoint", &SET_FAILPOINT_ARGS, NOTHING),
    #[cfg(feature = "failpoints")]
    command("x-inject", &INJECT_ARGS, NOTHING),
    #[cfg(feature = "failpoints")]
    query("x-audit", Type::Array(&Type::Object(&AUDIT_VALUE))),
];

/// Every event.
pub static EVENTS: &[EventSpec] = &[
    EventSpec { name: "STOP", data: &EMPTY },
    EventSpec { name: "RESUME", data: &EMPTY },
    EventSpec { name: "POWERDOWN", data: &EMPTY },
    EventSpec { name: "RESET", data: &RESET_DATA },
    EventSpec { name: "SHUTDOWN", data: &SHUTDOWN_DATA },
    EventSpec { name: "MIGRATION", data: &MIGRATION_DATA },
    EventSpec { name: "MIGRATION_PASS", data: &MIGRATION_PASS_DATA },
];
