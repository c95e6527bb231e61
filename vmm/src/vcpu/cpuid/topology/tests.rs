use std::collections::HashSet;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use rstest::rstest;

use super::*;

const CPUS: [u8; 8] = [1, 2, 3, 4, 8, 64, 65, 255];

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn leaves(function: u32, subleaves: &[[u32; 4]]) -> Vec<kvm_cpuid_entry2> {
    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let one = |(index, &registers)| kvm_cpuid_entry2 { index, flags, ..leaf(function, registers) };
    (0..).zip(subleaves).map(one).collect()
}

fn vendor(max: u32, name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    leaf(0, [max, word(0), word(8), word(4)])
}

/// Caches of a host with two threads per core and 28 cores: two of level 1, level 2, level 3, none.
const INTEL_CACHES: [[u32; 4]; 5] = [
    [0xfc00_4121, 0x02c0_003f, 63, 0],
    [0xfc00_4122, 0x01c0_003f, 63, 0],
    [0xfc00_4143, 0x03c0_003f, 2047, 0],
    [0xfc0f_c163, 0x0380_003f, 0xffff, 4],
    [0; 4],
];
const AMD_CACHES: [[u32; 4]; 5] = [
    [0x0000_4121, 0x01c0_003f, 63, 0],
    [0x0000_4122, 0x01c0_003f, 63, 0],
    [0x0000_4143, 0x01c0_003f, 1023, 2],
    [0x0003_c163, 0x03c0_003f, 0x7fff, 1],
    [0; 4],
];

/// `levels`: leaves 0xb and 0x1f as the host has them.
fn intel(levels: &[[u32; 4]]) -> Vec<kvm_cpuid_entry2> {
    let mut entries = vec![vendor(0x1f, b"GenuineIntel"), leaf(1, [0, 0x0740_0812, 0, HTT])];
    entries.extend(leaves(4, &INTEL_CACHES));
    entries.extend([leaves(0xb, levels), leaves(0x1f, levels)].concat());
    entries.push(leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]));
    entries.push(leaf(0x8000_0001, [0, 0, 1, 0]));
    entries.push(leaf(0x8000_0008, [0x3934, 0, 0, 0]));
    entries
}

fn amd(name: &[u8; 12], levels: &[[u32; 4]]) -> Vec<kvm_cpuid_entry2> {
    let mut entries = vec![vendor(0x20, name), leaf(1, [0, 0x0740_0812, 0, HTT])];
    entries.extend(leaves(4, &[[0; 4]]));
    entries.extend([leaves(0xb, levels), leaves(0x1f, &[[0; 4]])].concat());
    entries.push(leaf(0x8000_0000, [0x8000_0026, 0, 0, 0]));
    entries.push(leaf(0x8000_0001, [0, 0, TOPOLOGY_EXTENSIONS | CMP_LEGACY, 0]));
    entries.push(leaf(0x8000_0008, [0x3030, 0, 0x0003_707f, 0]));
    entries.extend(leaves(0x8000_001d, &AMD_CACHES));
    entries.push(leaf(0x8000_001e, [7, 0x0103, 0x0201, 0]));
    entries.extend(leaves(0x8000_0026, &[[0x0100_0001, 2, 0x100, 7], [7, 128, 0x401, 7]]));
    entries
}

/// The levels that KVM lists: the host's before Linux 6.2, an empty one since then.
const OLD: [[u32; 4]; 3] = [[1, 2, 0x100, 7], [6, 56, 0x201, 7], [0, 0, 2, 7]];
const NEW: [[u32; 4]; 1] = [[0; 4]];

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| entry.function == function && entry.index == index)
}

/// The smallest power of two that holds every APIC ID, as its exponent.
fn bits_for(cpus: u32) -> u32 {
    (0..).find(|bits| 1 << bits >= cpus).unwrap()
}

/// Asserts that all leaves describe the same `topology`.
pub(in super::super) fn assert_consistent(entries: &[kvm_cpuid_entry2], topology: Topology) {
    let (cpus, id) = (u32::from(topology.cpus), u32::from(topology.index));
    let bits = bits_for(cpus);
    let places: HashSet<_> = entries.iter().map(|entry| (entry.function, entry.index)).collect();
    assert_eq!(places.len(), entries.len(), "duplicates");
    assert!(entries.len() <= KVM_MAX_CPUID_ENTRIES);

    let leaf_1 = find(entries, 1, 0).unwrap();
    assert_eq!((leaf_1.ebx >> 24, leaf_1.ebx >> 16 & 0xff), (id, cpus));
    // Some KVMs show the host's flag to a guest with one vCPU, too: the number of vCPUs decides.
    assert!(cpus == 1 || leaf_1.edx & HTT != 0);

    let (basic, shape) = (find(entries, 0, 0).unwrap().eax, Shape::of(entries));
    for leaf in [0xb, 0x1f] {
        let found: Vec<_> = entries.iter().filter(|entry| entry.function == leaf).collect();
        if basic < leaf || leaf == 0x1f && shape == Shape::Amd {
            assert!(found.is_empty(), "{leaf:#x}");
            continue;
        }
        let registers: Vec<_> =
            found.iter().map(|e| (e.index, e.eax, e.ebx, e.ecx, e.edx)).collect();
        let expected = [(0, 0, 1, 0x100, id), (1, bits, cpus, 0x201, id), (2, 0, 0, 2, id)];
        assert_eq!(registers, expected, "{leaf:#x}");
        assert!(found.iter().all(|entry| entry.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
    }
    for entry in entries.iter().filter(|entry| entry.function == 4 && is_cache(entry)) {
        let all = (1 << bits) - 1;
        let expected = if entry.eax >> 5 & 7 >= 3 { all } else { 0 };
        assert_eq!(entry.eax >> 14 & 0xfff, expected, "{entry:x?}");
        assert_eq!(entry.eax >> 26, all.min(63), "{entry:x?}");
    }
    if shape == Shape::Amd {
        assert_amd(entries, cpus, id);
    }
}

fn assert_amd(entries: &[kvm_cpuid_entry2], cpus: u32, id: u32) {
    let extended = find(entries, 0x8000_0001, 0).unwrap();
    assert_eq!(extended.ecx & CMP_LEGACY != 0, cpus > 1);
    let sizes = find(entries, 0x8000_0008, 0).unwrap();
    assert_eq!((sizes.ecx & 0xff, sizes.ecx >> 12 & 0xf), (cpus - 1, bits_for(cpus)));
    for entry in entries.iter().filter(|e| e.function == 0x8000_001d && is_cache(e)) {
        let expected = if entry.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
        assert_eq!(entry.eax >> 14 & 0xfff, expected, "{entry:x?}");
    }
    let ids = find(entries, 0x8000_001e, 0).map(|e| (e.eax, e.ebx, e.ecx, e.edx));
    let has = extended.ecx & TOPOLOGY_EXTENSIONS != 0;
    assert_eq!(ids, has.then_some((id, id, 0, 0)));
}

fn built(host: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut entries = host.to_vec();
    topology.put_into(&mut entries);
    entries
}

#[rstest]
#[case::intel(intel(&OLD))]
#[case::intel_since_linux_6_2(intel(&NEW))]
#[case::intel_without_levels(intel(&[]))]
#[case::amd(amd(b"AuthenticAMD", &OLD))]
#[case::amd_since_linux_6_2(amd(b"AuthenticAMD", &NEW))]
#[case::hygon(amd(b"HygonGenuine", &NEW))]
fn all_leaves_agree(#[case] host: Vec<kvm_cpuid_entry2>) {
    for cpus in CPUS {
        for index in 0..cpus {
            let topology = Topology { index, cpus };
            assert_consistent(&built(&host, topology), topology);
        }
    }
}

#[test]
fn leaves_beyond_the_maximum_are_not_added() {
    let mut host = amd(b"AuthenticAMD", &[]);
    host[0].eax = 0xa;
    host.retain(|entry| entry.function < 0x8000_0009);
    host.iter_mut()
        .filter(|entry| entry.function == 0x8000_0001)
        .for_each(|entry| entry.ecx &= !TOPOLOGY_EXTENSIONS);
    let topology = Topology { index: 1, cpus: 2 };
    let entries = built(&host, topology);
    assert_consistent(&entries, topology);
    for function in [0xb, 0x1f, 0x8000_001d, 0x8000_001e, 0x8000_0026] {
        assert!(find(&entries, function, 0).is_none(), "{function:#x}");
    }
}

#[test]
fn non_topology_fields_are_kept() {
    let topology = Topology { index: 0, cpus: 4 };
    let entries = built(&intel(&NEW), topology);
    assert_eq!(find(&built(&intel(&NEW), Topology { index: 0, cpus: 1 }), 1, 0).unwrap().edx, 0);
    let registers = |function, index| {
        find(&entries, function, index).map(|e| (e.eax & 0x3fff, e.ebx, e.ecx, e.edx)).unwrap()
    };
    assert_eq!(registers(4, 3), (0x163, 0x0380_003f, 0xffff, 4));
    assert_eq!(registers(1, 0).1 & 0xff00, 0x0800);
    assert_eq!(registers(0x8000_0008, 0), (0x3934, 0, 0, 0));
    assert_eq!(registers(0x8000_0001, 0).2, 1, "CmpLegacy is AMD's");
    let entries = built(&amd(b"AuthenticAMD", &NEW), topology);
    assert_eq!(find(&entries, 0x8000_0008, 0).unwrap().ecx, 0x0003_2003);
}

#[test]
fn host_dies_are_hidden() {
    let entries = built(&amd(b"AuthenticAMD", &NEW), Topology { index: 0, cpus: 4 });
    let found: Vec<_> = entries.iter().filter(|entry| entry.function == 0x8000_0026).collect();
    assert_eq!(found.iter().map(|e| (e.index, e.ebx, e.ecx)).collect::<Vec<_>>(), [(0, 0, 0)]);
}
