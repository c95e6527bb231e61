//! Placement of the boot structures: at their usual addresses, unless the kernel is there.

use std::ops::Range;

use crate::memory::layout::{CONVENTIONAL_END, EXTENDED_START};

const PAGE: u64 = 4096;

/// Guest-physical memory that is in use.
#[derive(Clone, Debug, Default)]
pub struct Taken(Vec<Range<u64>>);

impl Taken {
    /// Marks `range` as in use.
    pub fn add(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.0.push(range);
        }
    }

    /// Whether nothing in `range` is in use.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        self.0.iter().all(|taken| range.end <= taken.start || taken.end <= range.start)
    }

    /// Takes `size` bytes at `usual`, or else at the lowest free page: below 640 KiB, or from 1 MiB
    /// to `low_end`. Page 0 stays free: its address means "none".
    pub fn place(&mut self, usual: u64, size: u64, low_end: u64) -> Option<u64> {
        let windows = [PAGE..CONVENTIONAL_END, EXTENDED_START..low_end];
        let fits = |start: u64| {
            let end = start.checked_add(size)?;
            let inside = windows.iter().any(|w| w.start <= start && end <= w.end);
            let free = self.0.iter().all(|taken| end <= taken.start || taken.end <= start);
            (inside && free).then_some(start)
        };
        // Other addresses need no check: the lowest free place begins where something ends.
        let mut starts: Vec<u64> = self.0.iter().map(|taken| taken.end).collect();
        starts.extend(windows.iter().map(|window| window.start));
        starts.retain_mut(|start| {
            start.checked_next_multiple_of(PAGE).inspect(|at| *start = *at).is_some()
        });
        starts.sort_unstable();
        let start = [usual].into_iter().chain(starts).find_map(fits)?;
        self.add(start..start + size);
        Some(start)
    }

    /// Takes `size` bytes at the highest free page that ends below `low_end` and lies above 1 MiB.
    pub fn place_high(&mut self, size: u64, low_end: u64) -> Option<u64> {
        let mut ends: Vec<u64> = self.0.iter().map(|taken| taken.start).collect();
        ends.push(low_end);
        ends.retain(|end| *end <= low_end);
        ends.sort_unstable();
        let start = ends.iter().rev().find_map(|end| {
            let start = end.checked_sub(size)? & !(PAGE - 1);
            let free = |taken: &Range<u64>| start + size <= taken.start || taken.end <= start;
            (start >= EXTENDED_START && self.0.iter().all(free)).then_some(start)
        })?;
        self.add(start..start + size);
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW_END: u64 = 8 << 20;

    fn taken(ranges: &[(u64, u64)]) -> Taken {
        let mut taken = Taken::default();
        ranges.iter().for_each(|&(start, end)| taken.add(start..end));
        taken
    }

    #[test]
    fn usual_address_is_used_if_free() {
        let mut kernel = taken(&[(0x5000, 0x6000), (0x7000, 0x8000), (EXTENDED_START, LOW_END)]);
        assert_eq!(kernel.place(0x6000, 0x1000, LOW_END), Some(0x6000));
        assert_eq!(kernel.place(0x6000, 0x1000, LOW_END), Some(0x1000));
    }

    #[test]
    fn one_byte_of_overlap_is_avoided() {
        for (start, end) in [(0x5fff, 0x6001), (0x6fff, 0x7000), (0, 0x7001)] {
            let place = taken(&[(start, end)]).place(0x6000, 0x1000, LOW_END).unwrap();
            assert!(place + 0x1000 <= start || end <= place, "{place:#x}");
        }
    }

    #[test]
    fn falls_back_to_above_1_mib_and_then_fails() {
        let kernel = [(0, CONVENTIONAL_END - 1), (EXTENDED_START, EXTENDED_START + 0x10)];
        assert_eq!(taken(&kernel).place(0x6000, 0x1000, LOW_END), Some(EXTENDED_START + PAGE));
        let all = [(0, CONVENTIONAL_END - PAGE + 1), (EXTENDED_START, LOW_END - 0xfff)];
        assert_eq!(taken(&all).place(0x6000, 0x1000, LOW_END), None);
        let beyond = [(0, LOW_END), (4 << 30, u64::MAX)];
        assert_eq!(taken(&beyond).place(0x6000, 0x1000, LOW_END), None);
    }

    #[test]
    fn the_hole_below_1_mib_is_not_used() {
        let kernel = [(0, 0x9_f000)];
        assert_eq!(taken(&kernel).place(0x6000, 0x1001, LOW_END), Some(EXTENDED_START));
    }

    #[test]
    fn the_highest_place_is_below_what_is_there() {
        let size = 0x1800;
        assert_eq!(taken(&[(0, 1)]).place_high(size, LOW_END), Some(LOW_END - 0x2000));
        let top = (LOW_END - 0x1000, LOW_END);
        assert_eq!(taken(&[top]).place_high(size, LOW_END), Some(LOW_END - 0x3000));
        let high = (4 << 30, 5 << 30);
        assert_eq!(taken(&[high]).place_high(size, LOW_END), Some(LOW_END - 0x2000));
        assert_eq!(taken(&[(EXTENDED_START, LOW_END - 0x1000)]).place_high(size, LOW_END), None);
    }
}
