//! The versions of the saved state and of its sections: what this binary reads, and what it writes so
//! that another one can read it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Version 1 of the saved state: a CBOR array of sections in an envelope.
pub const OLDEST_VERSION: u32 = 1;
/// Version 2: sections in frames.
pub const STATE_VERSION: u32 = 2;

/// A section with the versions that this binary reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownSection {
    /// Its name.
    pub name: &'static str,
    /// The oldest version.
    pub oldest: u32,
    /// The newest version.
    pub newest: u32,
    /// Whether a state may lack it.
    pub optional: bool,
}

impl KnownSection {
    /// Returns the versions that this binary reads and writes.
    pub fn versions(&self) -> RangeInclusive<u32> {
        self.oldest..=self.newest
    }
}

/// Returns the versions of the saved state that this binary reads and writes.
pub fn known_versions() -> RangeInclusive<u32> {
    seam!(known_versions(OLDEST_VERSION..=STATE_VERSION))
}

/// The versions that a state is written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Version of the whole.
    pub state: u32,
    /// Versions of the sections; those that are missing here are not written.
    pub sections: BTreeMap<&'static str, u32>,
}

impl Formats {
    /// The newest version of everything that is `known`.
    pub fn newest(known: &[KnownSection]) -> Self {
        let sections = known.iter().map(|section| (section.name, section.newest)).collect();
        Self { state: STATE_VERSION, sections }
    }

    /// What to write for a reader that has not said what it reads: sections as [`Self::newest`], in the
    /// oldest frame, which all readers know.
    pub fn for_unknown_reader(known: &[KnownSection]) -> Self {
        Self { state: OLDEST_VERSION, ..Self::newest(known) }
    }

    /// Returns the version to write of a section; `None` if it is not to be written.
    pub fn section(&self, name: &str) -> Option<u32> {
        self.sections.get(name).copied()
    }
}

/// Returns the newest version that is in both ranges.
pub fn newest_common(ours: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *ours.end().min(theirs.end());
    (ours.contains(&newest) && theirs.contains(&newest)).then_some(newest)
}

/// Names versions: "version 2", or "versions 1 to 3".
pub fn named(versions: &RangeInclusive<u32>) -> String {
    match versions.start() == versions.end() {
        true => format!("version {}", versions.end()),
        false => format!("versions {} to {}", versions.start(), versions.end()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(1..=2, 1..=2, Some(2))]
    #[case(1..=2, 2..=5, Some(2))]
    #[case(3..=4, 1..=3, Some(3))]
    #[case(1..=1, 2..=2, None)]
    #[case(2..=3, 1..=1, None)]
    fn newest_version_that_both_know_is_used(
        #[case] ours: RangeInclusive<u32>,
        #[case] theirs: RangeInclusive<u32>,
        #[case] expected: Option<u32>,
    ) {
        assert_eq!(newest_common(&ours, &theirs), expected);
        assert_eq!(newest_common(&theirs, &ours), expected);
    }

    #[test]
    fn versions_are_named() {
        assert_eq!(
            (named(&(2..=2)), named(&(1..=3))),
            ("version 2".into(), "versions 1 to 3".into())
        );
    }
}
