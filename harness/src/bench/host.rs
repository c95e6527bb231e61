//! What this host has for a guest.

use std::fs;

use super::Cell;
use crate::scenario::Pages;
use crate::scenario::size::Size;

/// Memory that everything but the guest's RAM may need.
const REST: u64 = 512 << 20;

/// Why the host has no memory for such a guest, if it has not.
pub(super) fn lacks_memory(cell: Cell) -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    short_of(of_the_rest(cell), available(&text)?)
}

/// RAM that does not come from a reserve: huge pages were set aside for it before.
fn of_the_rest(cell: Cell) -> Size {
    match cell.pages {
        Pages::Reserved => Size(0),
        Pages::Small | Pages::Transparent => cell.memory,
    }
}

fn short_of(ram: Size, available: u64) -> Option<String> {
    (ram.0.saturating_add(REST) > available).then(|| {
        format!(
            "a guest of {ram} needs more than the {} MiB that this host has to spare",
            available >> 20
        )
    })
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_none_of_the_memory_to_spare() {
        let cell = |pages| Cell { memory: Size(1 << 30), cpus: 1, pages };
        assert_eq!(of_the_rest(cell(Pages::Reserved)), Size(0));
        assert_eq!(of_the_rest(cell(Pages::Transparent)), Size(1 << 30));
    }

    #[test]
    fn a_guest_needs_its_ram_and_some_more() {
        let meminfo = "MemTotal:        9999999 kB\nMemAvailable:    1048576 kB\n";
        let available = available(meminfo);
        assert_eq!(available, Some(1 << 30));
        assert_eq!(short_of(Size(256 << 20), 1 << 30), None);
        insta::assert_snapshot!(
            short_of(Size(1 << 30), 1 << 30).unwrap_or_default(),
            @"a guest of 1G needs more than the 1024 MiB that this host has to spare"
        );
    }
}
