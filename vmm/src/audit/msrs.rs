//! Which MSRs are read: those that KVM lists, and whole ranges, because lists are incomplete.

use std::ops::RangeInclusive;
use std::os::fd::RawFd;

use kvm_bindings::{KVMIO, kvm_msr_entry};
use nix::errno::Errno;
use nix::request_code_readwrite;

use super::{AuditDepth, call};
use crate::sys;

const KVM_GET_MSR_INDEX_LIST: u64 = request_code_readwrite!(KVMIO, 0x02, 4);
const KVM_GET_MSR_FEATURE_INDEX_LIST: u64 = request_code_readwrite!(KVMIO, 0x0a, 4);
const KVM_GET_MSRS: u64 = request_code_readwrite!(KVMIO, 0x88, 8);

/// Maximum length of a list.
const MOST: usize = 1024;

/// Architectural MSRs and MTRRs, machine checks, VMX capabilities, deadline and performance,
/// x2APIC, supervisor states; Hyper-V's, KVM's, AMD's.
const RANGES: [RangeInclusive<u32>; 9] = [
    0x0..=0x3ff,
    0x400..=0x4a0,
    0x560..=0x58f,
    0x6a0..=0x6e8,
    0xd90..=0xdaf,
    0x4000_0000..=0x4000_0120,
    0x4b56_4d00..=0x4b56_4d0f,
    0xc000_0080..=0xc000_0104,
    0xc001_0000..=0xc001_0150,
];

/// Returns the MSRs to read.
pub(super) fn to_ask_for(kvm: RawFd, haste: AuditDepth) -> Vec<u32> {
    let ranges = if haste == AuditDepth::None { &RANGES[..] } else { &[] };
    let lists = [KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST];
    let listed = lists.into_iter().flat_map(|request| list(kvm, request));
    let mut all: Vec<u32> = listed.chain(ranges.iter().cloned().flatten()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn list(kvm: RawFd, request: u64) -> Vec<u32> {
    // A `kvm_msr_list`: the number of indices, then those, 32 bits each.
    let mut words = vec![0_u64; MOST / 2 + 1];
    words[0] = MOST as u64;
    if call::get_words(kvm, request, &mut words).is_err() {
        return Vec::new();
    }
    let halves: Vec<u32> =
        words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect();
    let count = halves[0] as usize;
    halves.into_iter().skip(1).take(count).collect()
}

/// Returns those of `indices` that `vcpu` has, with their values.
pub(super) fn read(vcpu: RawFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, Errno> {
    const BATCH: usize = 100;
    let mut found = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(BATCH)];
        // A `kvm_msrs`: the number of entries, then those: index and value, 64 bits each.
        let mut words = vec![part.len() as u64];
        words.extend(part.iter().flat_map(|index| [u64::from(*index), 0]));
        const { assert!(size_of::<kvm_msr_entry>() == 2 * size_of::<u64>()) };
        // SAFETY: the kernel writes as many entries as it was given.
        let read = unsafe { sys::ioctl(vcpu, KVM_GET_MSRS, words.as_mut_ptr() as usize)? };
        found.extend(part.iter().zip(words[1..].chunks(2)).take(read).map(|(i, w)| (*i, w[1])));
        // It stops at the first missing MSR.
        rest = &rest[(read + 1).min(part.len())..];
    }
    Ok(found)
}
