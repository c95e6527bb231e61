//! Checks whether this host has enough memory for a guest.

use procfs::{Current, Meminfo};

use super::Cell;
use crate::scenario::Pages;
use crate::scenario::size::Size;

/// Memory needed besides the guest's RAM.
const REST: u64 = 512 << 20;

/// Returns why the host has too little memory for such a guest, if so.
pub(super) fn lacks_memory(cell: Cell) -> Option<String> {
    short_of(of_the_rest(cell), Meminfo::current().ok()?.mem_available?)
}

/// Guest RAM that comes from available memory; reserved huge pages were set aside before.
fn of_the_rest(cell: Cell) -> Size {
    match cell.pages {
        Pages::Reserved => Size(0),
        Pages::Small | Pages::Transparent => cell.memory,
    }
}

fn short_of(ram: Size, available: u64) -> Option<String> {
    (ram.0.saturating_add(REST) > available).then(|| {
        format!(
            "a guest with {ram} of RAM needs more than the {} MiB available on this host",
            available >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_huge_pages_do_not_use_available_memory() {
        let cell = |pages| Cell { memory: Size(1 << 30), cpus: 1, pages };
        assert_eq!(of_the_rest(cell(Pages::Reserved)), Size(0));
        assert_eq!(of_the_rest(cell(Pages::Transparent)), Size(1 << 30));
    }

    #[test]
    fn a_guest_needs_its_ram_and_some_more() {
        assert_eq!(short_of(Size(256 << 20), 1 << 30), None);
        insta::assert_snapshot!(
            short_of(Size(1 << 30), 1 << 30).unwrap_or_default(),
            @"a guest with 1G of RAM needs more than the 1024 MiB available on this host"
        );
    }
}
