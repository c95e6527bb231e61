//! Audits: everything that can be read of a VM, compared before and after every step. What differs
//! is either explained in `scenarios/audits.toml`, with a reason, or it is a finding: no check has to
//! think of it first.

pub mod expected;
pub mod facts;
pub mod files;
pub mod process;

pub use expected::{Expectations, Moment};
pub use facts::{Change, Facts};

/// How many changes a finding tells.
const TOLD: usize = 8;

/// What an audit has to say of `changes` that nothing explains.
pub fn judge(audit: &str, vmm: &str, moment: Moment, changes: Vec<Change>) -> Result<(), String> {
    let unexplained = Expectations::embedded().unexplained(audit, vmm, moment, changes);
    if unexplained.is_empty() {
        return Ok(());
    }
    let mut told: Vec<_> = unexplained.iter().take(TOLD).map(Change::to_string).collect();
    if let Some(more) = unexplained.len().checked_sub(TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    Err(told.join("; "))
}
