//! Examines RAM and huge pages.

use procfs::{Current, Meminfo};

use super::Finding;
use crate::backend::Backend;
use crate::run::requirements::{no_shared_huge_pages, reserved_bytes};
use crate::scenario::size::Size;

/// A generous estimate of what two cases at a time need.
const ENOUGH: u64 = 2 << 30;

/// Examines RAM and huge pages for `backend`.
pub fn examine(backend: &dyn Backend) -> Vec<Finding> {
    let memory = Meminfo::current().ok().and_then(|memory| memory.mem_available);
    let reserved = reserved_bytes();
    vec![available(memory), transparent(no_shared_huge_pages(backend)), of_reserve(reserved)]
}

fn available(bytes: Option<u64>) -> Finding {
    let Some(bytes) = bytes else {
        let advice = "mount /proc: nothing can be observed without it";
        return Finding::missing("RAM", "/proc/meminfo lacks MemAvailable", advice);
    };
    let seen = format!("{} MiB available", bytes >> 20);
    match bytes < ENOUGH {
        true => Finding::limited("RAM", seen, "run with --jobs 1, and exclude big guests"),
        false => Finding::good("RAM", seen),
    }
}

fn transparent(none: Option<String>) -> Finding {
    let topic = "huge pages, thp";
    match none {
        None => Finding::good(topic, "supported for shared memory"),
        Some(why) => Finding::limited(
            topic,
            why,
            "be root, or: echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
    }
}

fn of_reserve(bytes: u64) -> Finding {
    let topic = "huge pages, 2m";
    match bytes {
        0 => Finding::limited(
            topic,
            "none reserved",
            "for guests with pages = \"2m\": echo 64 >/proc/sys/vm/nr_hugepages (128 MiB)",
        ),
        bytes => Finding::good(topic, format!("{} reserved and free", Size(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Some(20_000_000 << 10), Health::Good, "19531 MiB available")]
    #[case(Some(1_000_000 << 10), Health::Limited, "976 MiB available")]
    #[case(None, Health::Missing, "lacks MemAvailable")]
    fn available_memory_decides(
        #[case] bytes: Option<u64>,
        #[case] health: Health,
        #[case] seen: &str,
    ) {
        let finding = available(bytes);
        assert_eq!(finding.health, health);
        assert!(finding.seen.contains(seen), "{finding:?}");
    }

    #[test]
    fn missing_huge_pages_come_with_the_command_that_provides_them() {
        assert!(transparent(Some("none here".into())).advice.contains("shmem_enabled"));
        assert!(of_reserve(0).advice.contains("nr_hugepages"));
        assert_eq!(of_reserve(64 << 21), Finding::good("huge pages, 2m", "128M reserved and free"));
    }
}
