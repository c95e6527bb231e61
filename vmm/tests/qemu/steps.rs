//! The steps that both VMMs are taken through.

mod protocol;
mod updates;

use protocol::{ARGUMENTS, ENVELOPE, JSON, NEGOTIATION, QUERIES, RUN_STATE};
use updates::{
    FAILED, NO_MAIN_CHANNEL, PARAMETERS, REFUSED, REHEARSED, TWICE, UPDATED, UPDATED_AND_PAUSED,
};

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
