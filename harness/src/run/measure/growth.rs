//! Detects growth of a VMM's memory over many updates.

use std::collections::VecDeque;

/// Number of initial updates to ignore: a VMM may allocate its buffers first.
const WARM_UP: usize = 10;
/// Number of updates for each of the two medians, at the beginning and at the end.
const WINDOW: usize = 50;
/// Allowed growth of the median, in KiB: pages of stacks and heaps come and go. A twentieth of the
/// early median is allowed where that is more.
const ALLOWED_KIB: u64 = 1024;

/// Samples of a VMM's memory, in constant space.
#[derive(Debug, Default)]
pub struct Growth {
    seen: usize,
    early: Vec<u64>,
    late: VecDeque<u64>,
}

/// The VMM's memory has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the VMM's own memory grows: the median of {WINDOW} updates was {early} KiB at first and is {late} KiB now"
)]
pub struct Grown {
    early: u64,
    late: u64,
}

impl Growth {
    /// Records the memory after an update; returns an error once it has grown.
    pub fn note(&mut self, kib: u64) -> Result<(), Grown> {
        self.seen += 1;
        if self.seen <= WARM_UP {
            return Ok(());
        }
        if self.early.len() < WINDOW {
            self.early.push(kib);
            return Ok(());
        }
        self.late.push_back(kib);
        if self.late.len() < WINDOW {
            return Ok(());
        }
        let grown = compare(&self.early, self.late.make_contiguous());
        self.late.pop_front();
        grown
    }
}

fn compare(early: &[u64], late: &[u64]) -> Result<(), Grown> {
    let (early, late) = (median(early), median(late));
    match late > early + ALLOWED_KIB.max(early / 20) {
        true => Err(Grown { early, late }),
        false => Ok(()),
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(kib: impl Iterator<Item = u64>) -> Option<(usize, Grown)> {
        let mut growth = Growth::default();
        kib.enumerate().find_map(|(number, kib)| Some((number, growth.note(kib).err()?)))
    }

    #[test]
    fn fluctuation_is_not_growth() {
        assert_eq!(after((0..5000).map(|n| 3000 + n % 900)), None);
        assert_eq!(after((0..5000).map(|n| if n % 40 == 0 { 90_000 } else { 3000 })), None);
        // Buffers allocated once, and growth below a twentieth of a large VMM.
        assert_eq!(after((0..5000).map(|n| if n < 10 { 100 } else { 9000 })), None);
        assert_eq!(after((0..5000).map(|n| 100_000 + n)), None);
    }

    #[test]
    fn steady_growth_is_detected() {
        let (number, grown) = after((0..5000).map(|n| 3000 + 4 * n)).unwrap();
        assert!(number < 400, "{number}: {grown}");
        insta::assert_snapshot!(
            grown,
            @"the VMM's own memory grows: the median of 50 updates was 3140 KiB at first and is 4168 KiB now"
        );
        assert!(after((0..200).map(|n| if n < 100 { 3000 } else { 4100 })).is_some());
    }
}
