//! Transcripts of the protocol: messages, arguments, queries and the run state.

use super::{STATUS, Step, bytes, connect, negotiate, say};

pub(super) const NEGOTIATION: &[Step] = &[
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

pub(super) const ENVELOPE: &[Step] = &[
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

pub(super) const JSON: &[Step] = &[
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

pub(super) const ARGUMENTS: &[Step] = &[
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

pub(super) const QUERIES: &[Step] = &[
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

pub(super) const RUN_STATE: &[Step] = &[
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
