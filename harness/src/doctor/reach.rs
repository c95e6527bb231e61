//! Counts which cases can run here, and why the others cannot.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::run::requirements;
use crate::scenario::Case;

/// How many cases can be run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runnable {
    /// Number of cases that can.
    pub can: usize,
    /// Number of cases that cannot, by reason.
    pub cannot: BTreeMap<String, usize>,
}

/// Checks the requirements of each of `cases` as `run` does.
pub fn reach(cases: &[Case], backend: &dyn Backend) -> Runnable {
    let mut reach = Runnable::default();
    for case in cases {
        match requirements::unmet(case, backend) {
            None => reach.can += 1,
            Some(why) => *reach.cannot.entry(why).or_default() += 1,
        }
    }
    reach
}
