//! The intended differences from QEMU.

use std::fmt;

use Aspect::{Desc, Order, Reply};

use crate::steps::TRANSCRIPTS;

/// The aspect of a step's outcome that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// The returned value, or the class of the error.
    Reply,
    /// The text of the error.
    Desc,
    /// The events and their order.
    Order,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reply => "reply",
            Self::Desc => "error text",
            Self::Order => "events",
        })
    }
}

/// A known difference.
#[derive(Debug)]
pub struct Difference {
    /// The transcript.
    pub transcript: &'static str,
    /// The step in it.
    pub step: &'static str,
    /// The aspect.
    pub aspect: Aspect,
    /// Whether QEMU's outcome depends on the timing of its threads.
    pub varies: bool,
    /// The reason.
    pub reason: &'static str,
}

const fn row(
    transcript: &'static str,
    step: &'static str,
    aspect: Aspect,
    reason: &'static str,
) -> Difference {
    Difference { transcript, step, aspect, varies: false, reason }
}

const fn varying(
    transcript: &'static str,
    step: &'static str,
    aspect: Aspect,
    reason: &'static str,
) -> Difference {
    Difference { transcript, step, aspect, varies: true, reason }
}

const NO_OOB: &str = "out-of-band commands are not offered";
const WHOLE_PATH: &str = "ours names the full path of the invalid member";
const ONE_ERROR: &str = "ours gives one error for one bad line";
const TELLS_MORE: &str = "ours names what was tried, on what, and the errno";
const STANDARD_JSON: &str = "no known client sends QEMU's single quotes, which are not JSON";
const FINAL: &str = "ours has no passes, and sends `completed` only once it is final";
const ONE_STREAM: &str = "the connection survives an update, so its client also sees the end";
const STATE_OF_BEFORE: &str = "the guest keeps its run state; the flag applies only to booting";
const REFUSED_FIRST: &str = "ours refuses it in the answer, and starts no migration";
const EXECS_FIRST: &str = "QEMU may exec before it answers the second";

/// All known differences.
const DIFFERENCES: &[Difference] = &[
    row("negotiation", "greeting", Reply, NO_OOB),
    row("negotiation", "another connection", Reply, NO_OOB),
    row("negotiation", "unknown capability", Desc, WHOLE_PATH),
    row("negotiation", "oob enabled", Reply, NO_OOB),
    row("negotiation", "oob enabled", Desc, NO_OOB),
    row("negotiation", "exec-oob of a command without it", Desc, NO_OOB),
    row("envelope", "quotes of QEMU's own", Reply, STANDARD_JSON),
    row("envelope", "quotes of QEMU's own", Desc, STANDARD_JSON),
    row("json", "an invalid number", Reply, ONE_ERROR),
    row("json", "an invalid number", Desc, ONE_ERROR),
    row("json", "an invalid number", Order, ONE_ERROR),
    row("json", "a control character", Reply, ONE_ERROR),
    row("json", "a control character", Desc, ONE_ERROR),
    row("json", "a control character", Order, ONE_ERROR),
    row(
        "arguments",
        "a negative number",
        Desc,
        "QEMU wraps negative numbers, and would accept this one",
    ),
    row("arguments", "an unknown tag", Desc, WHOLE_PATH),
    row("arguments", "an unknown capability", Desc, WHOLE_PATH),
    row("queries", "pmemsave to nowhere", Desc, TELLS_MORE),
    row("refused", "migrate-incoming", Desc, TELLS_MORE),
    row("refused", "a bad offset", Desc, TELLS_MORE),
    row("refused", "tcp without a port", Desc, TELLS_MORE),
    row("refused", "a directory", Desc, TELLS_MORE),
    row("refused", "a missing directory", Desc, TELLS_MORE),
    row("refused", "a directory", Order, REFUSED_FIRST),
    row("refused", "a missing directory", Order, REFUSED_FIRST),
    row("refused", "unix socket that is not there", Reply, REFUSED_FIRST),
    row("refused", "unix socket that is not there", Desc, REFUSED_FIRST),
    row("refused", "unix socket that is not there", Order, REFUSED_FIRST),
    row("failed", "exec fails", Order, FINAL),
    row("failed", "exec fails, stopped", Order, FINAL),
    row(
        "failed",
        "status after exec failed, stopped",
        Reply,
        "a failed update keeps the run state, so an orchestrator need not restore it",
    ),
    row("rehearsed", "migrate", Reply, REFUSED_FIRST),
    row("rehearsed", "migrate", Desc, REFUSED_FIRST),
    row("rehearsed", "migrate", Order, REFUSED_FIRST),
    row("rehearsed", "query-migrate", Reply, REFUSED_FIRST),
    row("updated", "update", Reply, ONE_STREAM),
    row("updated", "update", Order, ONE_STREAM),
    row("updated", "greeting after the update", Reply, NO_OOB),
    row("updated", "query-migrate after the update", Reply, "ours still knows how long it took"),
    row(
        "updated",
        "capabilities after the update",
        Reply,
        "a client that asked for events keeps getting them on its open connection",
    ),
    row("updated_and_paused", "update", Reply, ONE_STREAM),
    row("updated_and_paused", "update", Order, ONE_STREAM),
    row("updated_and_paused", "greeting", Reply, NO_OOB),
    row("updated_and_paused", "status after the update", Reply, STATE_OF_BEFORE),
    varying("twice", "migrate twice", Reply, EXECS_FIRST),
    varying("twice", "migrate twice", Desc, EXECS_FIRST),
    row("twice", "migrate twice", Order, ONE_STREAM),
    row("no_main_channel", "migrate", Reply, "QEMU 11.1.3 segfaults, and the VM is lost"),
    row("no_main_channel", "migrate", Desc, "QEMU 11.1.3 segfaults, and the VM is lost"),
];

/// Returns the known differences of one transcript.
pub fn of(transcript: &str) -> impl Iterator<Item = &'static Difference> {
    DIFFERENCES.iter().filter(move |listed| listed.transcript == transcript)
}

/// Returns the known difference of this step and aspect, if any.
pub fn listed(transcript: &str, step: &str, aspect: Aspect) -> Option<&'static Difference> {
    of(transcript).find(|listed| listed.step == step && listed.aspect == aspect)
}

/// Checks that every difference names an existing step.
pub fn each_names_a_step() {
    for Difference { transcript, step, .. } in DIFFERENCES {
        let there = TRANSCRIPTS.iter().any(|(name, steps)| {
            name == transcript && steps.iter().any(|there| there.name == *step)
        });
        assert!(there, "{transcript} has no step {step}");
    }
}
