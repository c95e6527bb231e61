//! Audits compare everything readable about a VM before and after every step. A difference is
//! either explained in `scenarios/audits.toml`, with a reason, or it is a finding, without a
//! specific check for it.

pub mod expected;
pub mod facts;
pub mod files;
pub mod process;

pub use expected::{Expectations, Moment};
pub use facts::{Change, Facts};

/// The most changes that a finding lists.
const TOLD: usize = 8;

/// Fails with those of `changes` that no expectation explains.
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
