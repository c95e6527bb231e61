//! Transcripts of updates: parameters, refusals, failures and what comes after success.

use super::{
    MIGRATE, SET_COMMAND, STATUS, Step, connect, events, migrate, negotiate, resume, say, update,
};

pub(super) const PARAMETERS: &[Step] = &[
    negotiate(),
    say("mode", r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-exec"}}"#),
    say(
        "mode of the wrong kind",
        r#"{"execute": "migrate-set-parameters", "arguments": {"mode": 1}}"#,
    ),
    say("nothing", r#"{"execute": "migrate-set-parameters", "arguments": {}}"#),
    say("no arguments", r#"{"execute": "migrate-set-parameters"}"#),
    say(
        "a command",
        r#"{"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": ["/bin/vmm", "-x"]}}"#,
    ),
    say(
        "a command that is no list",
        r#"{"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": "/bin/vmm"}}"#,
    ),
    say(
        "a command of numbers",
        r#"{"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": ["/bin/vmm", 1]}}"#,
    ),
    say("what is set now", r#"{"execute": "query-migrate-parameters"}"#),
    say(
        "an empty command",
        r#"{"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": []}}"#,
    ),
    say(
        "mode cpr-reboot",
        r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-reboot"}}"#,
    ),
    say("what is set in the end", r#"{"execute": "query-migrate-parameters"}"#),
    say(
        "no capabilities",
        r#"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": []}}"#,
    ),
    events(),
    say(
        "events on twice",
        r#"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "events", "state": true}]}}"#,
    ),
];

pub(super) const REFUSED: &[Step] = &[
    negotiate(),
    events(),
    say("cont", r#"{"execute": "cont"}"#),
    say("migrate_cancel when idle", r#"{"execute": "migrate_cancel"}"#),
    say("query-migrate after that", r#"{"execute": "query-migrate"}"#),
    say(
        "migrate-incoming",
        r#"{"execute": "migrate-incoming", "arguments": {"uri": "file:DIR/state"}}"#,
    ),
    say("cpr-exec", r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-exec"}}"#),
    migrate("no command", MIGRATE, "failed"),
    say("query-migrate after no command", r#"{"execute": "query-migrate"}"#),
    say("status after no command", STATUS),
    say("a command", SET_COMMAND),
    say("neither uri nor channels", r#"{"execute": "migrate"}"#),
    say("no arguments at all", r#"{"execute": "migrate", "arguments": {}}"#),
    say(
        "uri and channels",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state", "channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": "DIR/state", "offset": 0}}]}}"#,
    ),
    say("no channels", r#"{"execute": "migrate", "arguments": {"channels": []}}"#),
    say(
        "two main channels",
        r#"{"execute": "migrate", "arguments": {"channels": [
            {"channel-type": "main", "addr": {"transport": "file", "filename": "DIR/a", "offset": 0}},
            {"channel-type": "main", "addr": {"transport": "file", "filename": "DIR/b", "offset": 0}}]}}"#,
    ),
    say("an unknown protocol", r#"{"execute": "migrate", "arguments": {"uri": "pigeon:coop"}}"#),
    say("no protocol", r#"{"execute": "migrate", "arguments": {"uri": "nonsense"}}"#),
    say("an empty uri", r#"{"execute": "migrate", "arguments": {"uri": ""}}"#),
    say(
        "a bad offset",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state,offset=x"}}"#,
    ),
    migrate(
        "tcp without a port",
        r#"{"execute": "migrate", "arguments": {"uri": "tcp:localhost"}}"#,
        "failed",
    ),
    migrate("a directory", r#"{"execute": "migrate", "arguments": {"uri": "file:DIR"}}"#, "failed"),
    migrate(
        "a missing directory",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/none/state"}}"#,
        "failed",
    ),
    migrate(
        "unix socket that is not there",
        r#"{"execute": "migrate", "arguments": {"uri": "unix:DIR/none"}}"#,
        "failed",
    ),
    say(
        "resume",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state", "resume": true}}"#,
    ),
    say("status in the end", STATUS),
];

pub(super) const FAILED: &[Step] = &[
    negotiate(),
    events(),
    say("cont", r#"{"execute": "cont"}"#),
    say(
        "a command that is not there",
        r#"{"execute": "migrate-set-parameters", "arguments": {UNREHEARSED"mode": "cpr-exec", "cpr-exec-command": ["/nonexistent/vmm"]}}"#,
    ),
    migrate("exec fails", MIGRATE, "failed"),
    say("query-migrate after exec failed", r#"{"execute": "query-migrate"}"#),
    say("status after exec failed", STATUS),
    say("parameters after exec failed", r#"{"execute": "query-migrate-parameters"}"#),
    say("stop", r#"{"execute": "stop"}"#),
    migrate("exec fails, stopped", MIGRATE, "failed"),
    say("status after exec failed, stopped", STATUS),
    say("migrate_cancel when failed", r#"{"execute": "migrate_cancel"}"#),
    say("query-migrate after migrate_cancel", r#"{"execute": "query-migrate"}"#),
    say("cont after all", r#"{"execute": "cont"}"#),
    say("mode normal", r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "normal"}}"#),
    migrate("migrate without mode", MIGRATE, "completed"),
];

pub(super) const REHEARSED: &[Step] = &[
    negotiate(),
    events(),
    say("cont", r#"{"execute": "cont"}"#),
    say(
        "a command that is not there",
        r#"{"execute": "migrate-set-parameters",
            "arguments": {"mode": "cpr-exec", "cpr-exec-command": ["/nonexistent/vmm"]}}"#,
    ),
    migrate("migrate", MIGRATE, "failed"),
    say("query-migrate", r#"{"execute": "query-migrate"}"#),
    say("query-status", STATUS),
];

pub(super) const UPDATED: &[Step] = &[
    negotiate(),
    events(),
    say("cont", r#"{"execute": "cont"}"#),
    say("a command", SET_COMMAND),
    update("update", MIGRATE),
    connect("greeting after the update"),
    say("too early after the update", STATUS),
    resume(),
    say("query-migrate after the update", r#"{"execute": "query-migrate"}"#),
    say("parameters after the update", r#"{"execute": "query-migrate-parameters"}"#),
    say("capabilities after the update", r#"{"execute": "query-migrate-capabilities"}"#),
    say("stop after the update", r#"{"execute": "stop"}"#),
    say("cont after the update", r#"{"execute": "cont"}"#),
];

pub(super) const TWICE: &[Step] = &[
    negotiate(),
    say("cont", r#"{"execute": "cont"}"#),
    say("a command", SET_COMMAND),
    update(
        "migrate twice",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state"}, "id": 1}
           {"execute": "migrate", "arguments": {"uri": "file:DIR/state"}, "id": 2}"#,
    ),
];

pub(super) const UPDATED_AND_PAUSED: &[Step] = &[
    negotiate(),
    say("cont", r#"{"execute": "cont"}"#),
    say(
        "a command that says to wait",
        r#"{"execute": "migrate-set-parameters",
            "arguments": {"mode": "cpr-exec", "cpr-exec-command": PAUSED}}"#,
    ),
    update("update", MIGRATE),
    connect("greeting"),
    resume(),
];

pub(super) const NO_MAIN_CHANNEL: &[Step] = &[
    negotiate(),
    update(
        "migrate",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "cpr",
            "addr": {"transport": "file", "filename": "DIR/state", "offset": 0}}]}}"#,
    ),
];
