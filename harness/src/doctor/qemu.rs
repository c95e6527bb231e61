//! Examines the QEMU that `--vmm qemu` uses.

use super::Finding;
use crate::backend::Backend;
use crate::backend::qemu::{ProbeError, Qemu, Setup, find};

const TOPIC: &str = "QEMU";

/// Looks for QEMU and probes it.
pub fn examine() -> Finding {
    match find() {
        None => Finding::limited(
            TOPIC,
            "not found in ci/.qemu/bin or $PATH",
            "only --vmm qemu needs it: run ci/install-qemu in a working tree, or give a path",
        ),
        Some(path) => told(Qemu::at(&path, Setup::default())),
    }
}

fn told(asked: Result<Qemu, ProbeError>) -> Finding {
    match asked {
        Ok(qemu) => Finding::good(TOPIC, qemu.title()),
        Err(e) => Finding::limited(
            TOPIC,
            e.to_string(),
            "only --vmm qemu needs it: run ci/install-qemu, or give the path of another",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_binary_that_does_not_answer_is_a_limit() {
        let asked = Qemu::at(std::path::Path::new("/bin/true"), Setup::default());
        let finding = told(asked);
        assert_eq!(finding.health, Health::Limited);
        assert!(finding.seen.contains("does not respond like QEMU"), "{finding:?}");
    }
}
