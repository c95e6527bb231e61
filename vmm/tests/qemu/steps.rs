//! The steps that both VMMs are taken through.

/// One step of a transcript.
pub struct Step {
    /// Its name, unique in the transcript.
    pub name: &'static str,
    /// The action.
    pub act: Act,
}

/// The action of a step; [`Peer::fill_in`](crate::peer::Peer::fill_in) completes the texts.
pub enum Act {
    /// Drops the connection and opens a new one.
    Connect,
    /// Negotiates after an update, and waits for the run state of the loaded guest.
    Resume,
    /// Sends this text, and waits for the answers.
    Say(&'static str),
    /// Sends these bytes, which need not be text, and waits for the answers.
    Bytes(&'static [u8]),
    /// Begins a migration that does not replace the process, and waits for its end. For QEMU that
    /// is the status `ends`, because its `completed` can be followed by `failed`.
    Migrate {
        /// The text to send.
        text: &'static str,
        /// QEMU's final status.
        ends: &'static str,
    },
    /// Begins an update with this text, and waits for its end.
    Update(&'static str),
}

const fn say(name: &'static str, text: &'static str) -> Step {
    Step { name, act: Act::Say(text) }
}

const fn bytes(name: &'static str, bytes: &'static [u8]) -> Step {
    Step { name, act: Act::Bytes(bytes) }
}

const fn migrate(name: &'static str, text: &'static str, ends: &'static str) -> Step {
    Step { name, act: Act::Migrate { text, ends } }
}

const fn update(name: &'static str, text: &'static str) -> Step {
    Step { name, act: Act::Update(text) }
}

const fn connect(name: &'static str) -> Step {
    Step { name, act: Act::Connect }
}

const fn resume() -> Step {
    Step { name: "status after the update", act: Act::Resume }
}

const fn negotiate() -> Step {
    say("qmp_capabilities", r#"{"execute": "qmp_capabilities"}"#)
}

const fn events() -> Step {
    say(
        "events on",
        r#"{"execute": "migrate-set-capabilities",
            "arguments": {"capabilities": [{"capability": "events", "state": true}]}}"#,
    )
}

const MIGRATE: &str = r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state"}}"#;

const SET_COMMAND: &str = r#"{"execute": "migrate-set-parameters",
    "arguments": {"mode": "cpr-exec", "cpr-exec-command": COMMAND}}"#;

const STATUS: &str = r#"{"execute": "query-status"}"#;

/// All transcripts; each runs on its own VMs.
pub const TRANSCRIPTS: &[(&str, &[Step])] = &[
    ("negotiation", NEGOTIATION),
    ("envelope", ENVELOPE),
    ("json", JSON),
    ("arguments", ARGUMENTS),
    ("queries", QUERIES),
    ("run_state", RUN_STATE),
    ("parameters", PARAMETERS),
    ("refused", REFUSED),
    ("failed", FAILED),
    ("rehearsed", REHEARSED),
    ("updated", UPDATED),
    ("updated_and_paused", UPDATED_AND_PAUSED),
    ("twice", TWICE),
    ("no_main_channel", NO_MAIN_CHANNEL),
];

const NEGOTIATION: &[Step] = &[
    connect("greeting"),
    say("command too early", STATUS),
    say("unknown command too early", r#"{"execute": "nonsense", "id": 1}"#),
    say("exec-oob too early", r#"{"exec-oob": "query-status", "id": 2}"#),
    say(
        "unknown capability",
        r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["nonsense"]}}"#,
    ),
    say(
        "capability of a wrong type",
        r#"{"execute": "qmp_capabilities", "arguments": {"enable": 1}}"#,
    ),
    negotiate(),
    say("negotiated twice", r#"{"execute": "qmp_capabilities", "id": "again"}"#),
    say("exec-oob not enabled", r#"{"exec-oob": "query-status", "id": 3}"#),
    connect("another connection"),
    say("too early on it", r#"{"execute": "query-version"}"#),
    say("oob enabled", r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#),
    say("exec-oob of a command without it", r#"{"exec-oob": "query-status", "id": 4}"#),
];

const ENVELOPE: &[Step] = &[
    negotiate(),
    say("unknown command", r#"{"execute": "nonsense", "id": "an id"}"#),
    say("id null", r#"{"execute": "query-name", "id": null}"#),
    say("id object", r#"{"id": {"a": [1, 2.5, "x"]}, "execute": "query-name"}"#),
    say("id number too large", r#"{"execute": "query-name", "id": 18446744073709551616}"#),
    say("no execute", r#"{"id": 5}"#),
    say("empty object", "{}"),
    say("execute of a wrong type", r#"{"execute": 1, "id": 6}"#),
    say("arguments of a wrong type", r#"{"execute": "stop", "arguments": [], "id": 7}"#),
    say("arguments null", r#"{"execute": "stop", "arguments": null}"#),
    say("unknown member", r#"{"execute": "query-name", "x": 1, "id": 8}"#),
    say("execute and exec-oob", r#"{"execute": "query-name", "exec-oob": "query-name", "id": 9}"#),
    say("a list", r#"[{"execute": "query-name"}]"#),
    say("a number", "42"),
    say("a text", r#""query-name""#),
    say("null", "null"),
    say("the same member twice", r#"{"execute": "query-name", "execute": "query-status"}"#),
    say(
        "two on one line",
        r#"{"execute": "query-name", "id": 1} {"execute": "query-name", "id": 2}"#,
    ),
    say("on several lines", "{\n\"execute\":\n\t\"query-name\"\r\n}"),
    say("quotes of QEMU's own", r#"{'execute': 'query-name', 'id': 'it is'}"#),
];

const JSON: &[Step] = &[
    negotiate(),
    say("garbage", "nonsense"),
    say("garbage, then a command", r#"garbage {"execute": "query-name"}"#),
    say("a stray bracket", "}"),
    say("brackets that do not match", r#"{"execute": "query-name"]"#),
    say("no value", r#"{"execute": }"#),
    say("a comma too many", r#"{"execute": "query-name",}"#),
    say("a member without quotes", r#"{execute: "query-name"}"#),
    say("an invalid number", r#"{"execute": "query-name", "id": 01}"#),
    say("a text that ends with the line", "{\"execute\": \"query-"),
    say("an invalid escape", r#"{"execute": "query-\x6eame"}"#),
    say("half a surrogate pair", r#"{"execute": "query-name", "id": "\ud800"}"#),
    say("an escaped NUL", r#"{"execute": "query-name", "id": "\u0000"}"#),
    bytes("no UTF-8", b"{\"execute\": \"query-name\", \"id\": \"\xc3\x28\"}"),
    bytes("0xFF", b"\xff"),
    bytes("0xFF in a command", b"{\"execute\": \xff{\"execute\": \"query-name\"}"),
    bytes("a control character", b"{\"execute\": \"query-\x01name\"}"),
];

const ARGUMENTS: &[Step] = &[
    negotiate(),
    say("missing", r#"{"execute": "pmemsave", "arguments": {"val": 0, "size": 1}}"#),
    say("missing, and no arguments", r#"{"execute": "migrate-set-capabilities"}"#),
    say("unknown", r#"{"execute": "stop", "arguments": {"force": true}}"#),
    say(
        "unknown beside a known one",
        r#"{"execute": "migrate", "arguments": {"uri": "file:/x", "blk": true}}"#,
    ),
    say(
        "detach, which QEMU once had",
        r#"{"execute": "migrate", "arguments": {"uri": "file:/x", "detach": true}}"#,
    ),
    say("a number for a text", r#"{"execute": "migrate", "arguments": {"uri": 1}}"#),
    say(
        "a text for a number",
        r#"{"execute": "pmemsave", "arguments": {"val": "0", "size": 1, "filename": "x"}}"#,
    ),
    say(
        "a fraction",
        r#"{"execute": "pmemsave", "arguments": {"val": 0.5, "size": 1, "filename": "x"}}"#,
    ),
    say(
        "a negative number",
        r#"{"execute": "pmemsave", "arguments": {"val": -1, "size": 1, "filename": "DIR/none/x"}}"#,
    ),
    say(
        "a text for a boolean",
        r#"{"execute": "migrate", "arguments": {"uri": "file:/x", "resume": "true"}}"#,
    ),
    say("a text for a list", r#"{"execute": "migrate", "arguments": {"channels": "file:/x"}}"#),
    say("a list of a wrong type", r#"{"execute": "migrate", "arguments": {"channels": [1]}}"#),
    say("null for an optional one", r#"{"execute": "migrate", "arguments": {"uri": null}}"#),
    say(
        "missing deep inside",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": "/x"}}]}}"#,
    ),
    say(
        "a wrong type deep inside",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": "/x", "offset": "0"}}]}}"#,
    ),
    say(
        "unknown deep inside",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": "/x", "offset": 0, "mode": 1}}]}}"#,
    ),
    say(
        "no tag",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": {"filename": "/x"}}]}}"#,
    ),
    say(
        "an unknown tag",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": {"transport": "pigeon"}}]}}"#,
    ),
    say(
        "an unknown capability",
        r#"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "nonsense", "state": true}]}}"#,
    ),
    say(
        "an unknown mode",
        r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "nonsense"}}"#,
    ),
    say(
        "an unknown parameter",
        r#"{"execute": "migrate-set-parameters", "arguments": {"nonsense": 1}}"#,
    ),
    say(
        "two that are wrong",
        r#"{"execute": "migrate-set-parameters", "arguments": {"mode": 1, "cpr-exec-command": 2}}"#,
    ),
];

const QUERIES: &[Step] = &[
    negotiate(),
    say("query-version", r#"{"execute": "query-version"}"#),
    say("query-commands", r#"{"execute": "query-commands"}"#),
    say("query-name", r#"{"execute": "query-name"}"#),
    say("query-status", STATUS),
    say("query-cpus-fast", r#"{"execute": "query-cpus-fast"}"#),
    say("query-memory-size-summary", r#"{"execute": "query-memory-size-summary"}"#),
    say("query-migrate", r#"{"execute": "query-migrate"}"#),
    say("query-migrate-parameters", r#"{"execute": "query-migrate-parameters"}"#),
    say("query-migrate-capabilities", r#"{"execute": "query-migrate-capabilities"}"#),
    say(
        "pmemsave",
        r#"{"execute": "pmemsave", "arguments": {"val": 0, "size": 4096, "filename": "DIR/memory"}}"#,
    ),
    say(
        "pmemsave of nothing",
        r#"{"execute": "pmemsave", "arguments": {"val": 0, "size": 0, "filename": "DIR/memory"}}"#,
    ),
    say(
        "pmemsave to nowhere",
        r#"{"execute": "pmemsave", "arguments": {"val": 0, "size": 1, "filename": "DIR/none/memory"}}"#,
    ),
];

const RUN_STATE: &[Step] = &[
    negotiate(),
    say("stop before cont", r#"{"execute": "stop"}"#),
    say("status after that", STATUS),
    say("cont", r#"{"execute": "cont"}"#),
    say("cont while running", r#"{"execute": "cont"}"#),
    say("status running", STATUS),
    say("stop", r#"{"execute": "stop"}"#),
    say("stop while stopped", r#"{"execute": "stop"}"#),
    say("status stopped", STATUS),
    say("system_reset while stopped", r#"{"execute": "system_reset"}"#),
    say("status after the reset", STATUS),
];

const PARAMETERS: &[Step] = &[
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

const REFUSED: &[Step] = &[
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

const FAILED: &[Step] = &[
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

const REHEARSED: &[Step] = &[
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

const UPDATED: &[Step] = &[
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

const TWICE: &[Step] = &[
    negotiate(),
    say("cont", r#"{"execute": "cont"}"#),
    say("a command", SET_COMMAND),
    update(
        "migrate twice",
        r#"{"execute": "migrate", "arguments": {"uri": "file:DIR/state"}, "id": 1}
           {"execute": "migrate", "arguments": {"uri": "file:DIR/state"}, "id": 2}"#,
    ),
];

const UPDATED_AND_PAUSED: &[Step] = &[
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

const NO_MAIN_CHANNEL: &[Step] = &[
    negotiate(),
    update(
        "migrate",
        r#"{"execute": "migrate", "arguments": {"channels": [{"channel-type": "cpr",
            "addr": {"transport": "file", "filename": "DIR/state", "offset": 0}}]}}"#,
    ),
];
