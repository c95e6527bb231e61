//! The cases of a soak: one for each VM, all different by default.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::scenario::size::Size;
use crate::scenario::{Case, Setbacks, Soak, Step, Vm};

/// Guests that check themselves without input from the host.
pub const GUESTS: [&str; 8] =
    ["pattern", "timer", "registers", "smp", "clock", "interrupts", "heartbeat", "mmio"];
/// Different sizes of RAM, none of which takes long to fill.
const MEMORY: [Size; 3] = [Size(64 << 20), Size(128 << 20), Size(96 << 20)];
const CPUS: [u32; 2] = [1, 2];
/// How long a burst may take in milliseconds, on a busy host and with a guest that is stopped in
/// between.
const BURST_MS: u64 = 120_000;

/// The requested VMs. Lists are cycled through; empty ones mean the defaults above.
#[derive(Clone, Debug)]
pub struct SoakConfig {
    /// How many VMs.
    pub vms: usize,
    /// Their guests.
    pub guests: Vec<String>,
    /// Their RAM.
    pub memory: Vec<Size>,
    /// Their vCPUs.
    pub cpus: Vec<u32>,
    /// The seed from which each VM's seed is derived.
    pub seed: u64,
    /// Whether some updates are refused or undone.
    pub setbacks: Setbacks,
}

impl Default for SoakConfig {
    fn default() -> Self {
        Self {
            vms: 1,
            guests: Vec::new(),
            memory: Vec::new(),
            cpus: Vec::new(),
            seed: 1,
            setbacks: Setbacks::Some,
        }
    }
}

/// Returns a case for each VM.
pub fn cases(wish: &SoakConfig) -> Vec<Case> {
    let pick = |index: usize, of: usize| index % of.max(1);
    let case = |index: usize| {
        let guest = match wish.guests.as_slice() {
            [] => GUESTS[pick(index, GUESTS.len())].to_owned(),
            guests => guests[pick(index, guests.len())].clone(),
        };
        let memory = match wish.memory.as_slice() {
            [] => MEMORY[pick(index, MEMORY.len())],
            sizes => sizes[pick(index, sizes.len())],
        };
        let cpus = match wish.cpus.as_slice() {
            [] => CPUS[pick(index, CPUS.len())],
            counts => counts[pick(index, counts.len())],
        };
        let soak =
            Soak { updates: u32::MAX, within_ms: 20, setbacks: wish.setbacks, in_boot: false };
        Case {
            name: format!("soak/{index}-{guest}[cpus={cpus},memory={memory}]"),
            summary: "updates without end".into(),
            // Masked, because TOML's integers are signed.
            seed: xxh3_64_with_seed(&index.to_le_bytes(), wish.seed) >> 1,
            deadline_ms: BURST_MS + (memory.0 >> 30) * 30_000,
            max_blackout_ms: None,
            on_request: true,
            steps: vec![Step::Boot, Step::Soak(soak), Step::Quit],
            vm: Vm { guest, memory, cpus, ..Vm::default() },
        }
    };
    (0..wish.vms).map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse::parse_case;

    #[test]
    fn vms_differ_by_default() {
        let four = cases(&SoakConfig { vms: 4, ..SoakConfig::default() });
        let names: Vec<&str> = four.iter().map(|case| case.name.as_str()).collect();
        insta::assert_snapshot!(names.join("\n"));
        let seeds: std::collections::BTreeSet<u64> = four.iter().map(|case| case.seed).collect();
        assert_eq!(seeds.len(), 4);
        let guests = vec!["smp".to_owned(), "mmio".to_owned()];
        let wish = SoakConfig { vms: 3, guests, cpus: vec![4], ..SoakConfig::default() };
        let vms: Vec<_> = cases(&wish).into_iter().map(|c| (c.vm.guest, c.vm.cpus)).collect();
        assert_eq!(vms, [("smp".into(), 4), ("mmio".into(), 4), ("smp".into(), 4)]);
    }

    #[test]
    fn the_case_of_every_guest_round_trips() {
        for case in cases(&SoakConfig { vms: GUESTS.len(), ..SoakConfig::default() }) {
            let text = toml::to_string(&case).unwrap();
            assert_eq!(parse_case("case.toml", &text).unwrap(), case, "{text}");
        }
    }
}
