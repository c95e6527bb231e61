//! The error lines of updates that did not succeed, normalized to be the same on every machine and
//! in every run.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use crate::check::Ending;
use crate::run::session::Session;
use crate::run::verdict::FailedUpdate;
use crate::scenario::{Expect, Inject, Migrate};

/// How a command that forks is described in the table of errors.
const FORKED: &str = "it left its child behind, or its child replied";

/// What differs between runs besides paths, and its replacement.
static VARYING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"state-\d+", "state-N"),
        (r"\b(PID|process|child|descriptor|fd) \d+", "$1 N"),
        (r"\b\d+ bytes", "N bytes"),
        (r"\b(stop the guest|been stopped) for \d+\.\d ms", "$1 for N ms"),
        // The size of a state depends on the host: its XSAVE area, its MSRs.
        (r"\b(after writing|which says) \d+", "$1 N"),
        // The position of a word shifts when a command gains an option before it.
        (r"\bword \d+", "word N"),
        (r"\bat section \d+", "at section N"),
        // The child of a command that forks may reply before the command exits, or after that.
        (
            r"it exited with status 0 before replying to the rehearsal, and left process N behind",
            FORKED,
        ),
        (r"the rehearsal started process N, but process N replied", FORKED),
        (r"\bcpr-\d+\.sock", "cpr-N.sock"),
        // Each may be the first that fails.
        (r"\bthread of vCPU \d+", "thread of vCPU N"),
        (r"\.rs:\d+", ".rs:N"),
        (r"\bn{20,}", "nnn…"),
        (r"\s+", " "),
    ]
    .into_iter()
    .filter_map(|(pattern, becomes)| Some((Regex::new(pattern).ok()?, becomes)))
    .collect()
});

impl Session<'_> {
    /// Records the error that the operator got, each line once.
    pub(super) fn note_failure(
        &mut self,
        migrate: &Migrate,
        injected: Option<&Inject>,
        ending: &Ending,
    ) {
        // These updates may end in several ways, so the error can differ in the next run.
        let any = matches!(migrate.expect, Expect::Any | Expect::Revived | Expect::Survives);
        if any || migrate.error_varies() {
            return;
        }
        let (ended, error) = match ending {
            Ending::Completed | Ending::Cancelled => return,
            Ending::Refused(error) => ("refused", error),
            Ending::Failed(error) => ("failed", error),
        };
        let mut places = [
            (self.options.backend.binary(), "<vmm>"),
            (self.next_build().binary(), "<vmm>"),
            (&*self.evidence.folder, "<evidence>"),
            (&*self.work, "<work>"),
        ];
        // Longest first: one path may be a prefix of another.
        places.sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
        let failed = FailedUpdate {
            what: migrate.describe_failure(&self.case.vm, injected),
            ended: ended.to_owned(),
            error: redacted(error, &places),
        };
        if !self.failed_updates.contains(&failed) {
            self.failed_updates.push(failed);
        }
    }
}

fn redacted(error: &str, places: &[(&Path, &str)]) -> String {
    let mut text = error.trim().to_owned();
    for (path, name) in places {
        text = text.replace(&*path.to_string_lossy(), name);
    }
    for (varying, becomes) in VARYING.iter() {
        text = varying.replace_all(&text, *becomes).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("cannot open file:/tmp/cpr-a/state-12: No", "cannot open file:<work>/state-N: No")]
    #[case("cannot execute \"/b/vmm\" (os error 2)", "cannot execute \"<vmm>\" (os error 2)")]
    #[case("cannot write 14992 bytes", "cannot write N bytes")]
    #[case("it has 12 bytes after writing 15094", "it has N bytes after writing N")]
    #[case("4 bytes after its header, which says 14454", "N bytes after its header, which says N")]
    #[case(
        "the rehearsal started process 7, but process 8 replied: a",
        "it left its child behind, or its child replied: a"
    )]
    #[case("the thread of vCPU 1 has ended", "the thread of vCPU N has ended")]
    #[case("word 26 of cpr-exec-command", "word N of cpr-exec-command")]
    #[case("connect to unix:/tmp/cpr-a/cpr-3.sock: Con", "connect to unix:<work>/cpr-N.sock: Con")]
    #[case("truncated at section 2, before", "truncated at section N, before")]
    #[case("descriptor 17 of process 4711", "descriptor N of process N")]
    #[case("has 64 MiB, within 2000 ms", "has 64 MiB, within 2000 ms")]
    #[case("been stopped for 7.7 ms of the 1.0 ms", "been stopped for N ms of the 1.0 ms")]
    #[case("/tmp/cpr-a/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnn: two\nlines", "<work>/nnn…: two lines")]
    fn replaces_what_varies(#[case] error: &str, #[case] told: &str) {
        let places = [(Path::new("/b/vmm"), "<vmm>"), (Path::new("/tmp/cpr-a"), "<work>")];
        assert_eq!(redacted(error, &places), told);
    }

    #[test]
    fn every_pattern_is_valid() {
        assert_eq!(VARYING.len(), 14);
    }
}
