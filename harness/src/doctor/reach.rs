//! Which cases can run here, and why the others cannot.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::run::requirements;
use crate::scenario::Case;

/// How many cases can be run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Those that can.
    pub can: usize,
    /// Those that cannot, by the reason.
    pub cannot: BTreeMap<String, usize>,
}

/// Asks for each of `cases` what `run` would ask.
pub fn reach(cases: &[Case], backend: &dyn Backend) -> Reach {
    let mut reach = Reach::default();
    for case in cases {
        match requirements::unmet(case, backend) {
            None => reach.can += 1,
            Some(why) => *reach.cannot.entry(why).or_default() += 1,
        }
    }
    reach
}
