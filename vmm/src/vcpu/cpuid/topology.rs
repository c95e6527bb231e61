//! The CPUID leaves that describe the number of vCPUs and what they share.
//!
//! KVM does not fill them in: since Linux 6.2 it lists leaves 0xb, 0x1f and 0x8000001e empty, and
//! the others describe the host. They are built here so that they agree with each other: one
//! package, one core per vCPU, caches up to level 2 private to a core, level 3 shared by all. (SDM
//! vol. 2, CPUID; AMD APM vol. 3, appendix E.)

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const HTT: u32 = 1 << 28;
/// AMD: the logical processors of a package are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// AMD: there are leaves 0x8000001d and 0x8000001e.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// The field for cores in leaf 4 has 6 bits: with more cores than that, leaf 0xb applies.
const LEAF_4_CORES: u32 = 0x3f;
/// First cache level that cores share.
const SHARED_LEVEL: u32 = 3;

/// The position of a vCPU among all vCPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Topology {
    /// The vCPU's index, which is its APIC ID.
    pub(super) index: u8,
    /// Number of vCPUs, at least one.
    pub(super) cpus: u8,
}

/// Which vendor's leaves describe the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Intel,
    Amd,
}

impl Shape {
    fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let vendor = entries.iter().find(|entry| entry.function == 0).map_or([0; 3], |leaf| {
            // In this order the registers spell the vendor's name.
            [leaf.ebx, leaf.edx, leaf.ecx]
        });
        match vendor.map(u32::to_le_bytes).as_flattened() {
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }
}

impl Topology {
    /// Number of APIC ID bits that distinguish the cores of a package.
    fn core_bits(self) -> u32 {
        u8::BITS - self.cpus.saturating_sub(1).leading_zeros()
    }

    /// Replaces everything that `entries` say about the topology.
    pub(super) fn put_into(self, entries: &mut Vec<kvm_cpuid_entry2>) {
        let shape = Shape::of(entries);
        let max = |first, entries: &[kvm_cpuid_entry2]| {
            entries.iter().find(|entry| entry.function == first).map_or(0, |entry| entry.eax)
        };
        let (basic, extended) = (max(0, entries), max(0x8000_0000, entries));
        entries.iter_mut().for_each(|entry| self.adjust(entry, shape));
        for leaf in [0xb, 0x1f] {
            entries.retain(|entry| entry.function != leaf);
            if basic >= leaf && (leaf == 0xb || shape == Shape::Intel) {
                entries.extend(self.levels(leaf));
            }
        }
        // There are no dies or complexes to describe: an empty leaf sends the guest to 0xb.
        if entries.iter().any(|entry| entry.function == 0x8000_0026) {
            entries.retain(|entry| entry.function != 0x8000_0026);
            entries.push(subleaf(0x8000_0026, 0));
        }
        let has_extensions = entries
            .iter()
            .any(|entry| entry.function == 0x8000_0001 && entry.ecx & TOPOLOGY_EXTENSIONS != 0);
        if shape == Shape::Amd {
            entries.retain(|entry| entry.function != 0x8000_001e);
            if has_extensions && extended >= 0x8000_001e {
                entries.push(self.extended_ids());
            }
        }
    }

    fn adjust(self, entry: &mut kvm_cpuid_entry2, shape: Shape) {
        let cpus = u32::from(self.cpus);
        match (entry.function, shape) {
            (0x1, _) => {
                entry.ebx = entry.ebx & 0xff00 | u32::from(self.index) << 24 | cpus << 16;
                entry.edx = entry.edx & !HTT | if cpus > 1 { HTT } else { 0 };
            }
            (0x4, Shape::Intel) if is_cache(entry) => {
                let ids = (1 << self.core_bits()) - 1;
                share(entry, ids);
                entry.eax = entry.eax & 0x03ff_ffff | ids.min(LEAF_4_CORES) << 26;
            }
            (0x8000_0001, Shape::Amd) => {
                entry.ecx = entry.ecx & !CMP_LEGACY | if cpus > 1 { CMP_LEGACY } else { 0 };
            }
            (0x8000_0008, Shape::Intel) => entry.ecx = 0,
            (0x8000_0008, Shape::Amd) => {
                entry.ecx = entry.ecx & !0xf0ff | self.core_bits() << 12 | (cpus - 1);
            }
            (0x8000_001d, Shape::Amd) if is_cache(entry) => share(entry, cpus - 1),
            _ => {}
        }
    }

    /// Builds leaf 0xb or 0x1f: threads of a core, cores of the package, and a terminator.
    fn levels(self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        let (threads, cores) = ((0, 1, 1 << 8), (self.core_bits(), self.cpus.into(), 2 << 8));
        let mut index = 0;
        [threads, cores, (0, 0, 0)].map(|(eax, ebx, level_type)| {
            let entry = kvm_cpuid_entry2 {
                eax,
                ebx,
                ecx: level_type | index,
                edx: self.index.into(),
                ..subleaf(leaf, index)
            };
            index += 1;
            entry
        })
    }

    /// Builds leaf 0x8000001e: a core of its own, in the only node.
    fn extended_ids(self) -> kvm_cpuid_entry2 {
        let id = self.index.into();
        kvm_cpuid_entry2 { function: 0x8000_001e, eax: id, ebx: id, ..Default::default() }
    }
}

fn subleaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..Default::default()
    }
}

/// Whether a subleaf of leaf 4 or 0x8000001d describes a cache; the last one does not.
fn is_cache(entry: &kvm_cpuid_entry2) -> bool {
    entry.eax & 0x1f != 0
}

/// Sets how many others share a cache: `others` if all cores share its level, else none.
fn share(entry: &mut kvm_cpuid_entry2, others: u32) {
    let level = entry.eax >> 5 & 0b111;
    let others = if level >= SHARED_LEVEL { others } else { 0 };
    entry.eax = entry.eax & !(0xfff << 14) | others << 14;
}

#[cfg(test)]
pub(super) mod tests;
